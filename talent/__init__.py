"""TALENT: referring image segmentation, training side. Importing this package imports no torch."""

__version__ = "0.1.0"
