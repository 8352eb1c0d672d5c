"""`python -m posttrain`: see `cli.commands`."""

import sys

from posttrain.cli.arguments import parse

if __name__ == "__main__":
    options = parse()
    # Import PyTorch, which takes seconds, for a command that can run
    from posttrain.cli.commands import run

    sys.exit(run(options))
