"""What is kept: trained stages on disk, and the processes that work side by side."""
