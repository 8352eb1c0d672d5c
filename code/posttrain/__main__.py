"""`python -m posttrain`: see `cli.commands`."""

import sys

from posttrain.cli.arguments import parse
from posttrain.cli.boundary import guarded


def read_and_run() -> int:
    """Read the command line and run it; return the exit status."""
    options = parse()
    # Import PyTorch, which takes seconds, for a command that can run
    from posttrain.cli.commands import run

    return run(options)


if __name__ == "__main__":
    sys.exit(guarded(read_and_run))
