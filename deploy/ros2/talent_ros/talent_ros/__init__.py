"""TALENT Edge for ROS 2. The work is done by the Python package talent-edge (deploy.ros); here are ROS's own parts."""
