"""Frame after frame: where pictures come from, three threads over one bundle, and what is drawn and written."""
