"""Models from elsewhere: the book's losses and loops on a Hugging Face model."""
