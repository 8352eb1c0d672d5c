"""Post-Training from Scratch: the small package that the book's chapters show and run."""

__version__ = "0.1.0"
