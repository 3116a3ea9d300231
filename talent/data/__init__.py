"""Data sets of referring expressions."""
