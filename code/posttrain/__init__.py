"""Post-Training from Scratch: the small package that the book's chapters show and
run.
"""

__version__ = "0.1.0"

# Note what the files say before any of them is loaded
import posttrain.keep.code  # noqa: E402, F401
