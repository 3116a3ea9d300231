"""What a machine is, what it can build and run, and what is wrong with it: the parts of talent-doctor."""
