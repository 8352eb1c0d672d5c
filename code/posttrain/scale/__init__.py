"""Several processes, and what larger runs take."""
