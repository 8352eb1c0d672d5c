"""The corpus and the book's own data sets."""
