"""`python -m posttrain`: see `cli.commands`."""

import sys

from posttrain.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
