"""`python -m minicst` is the command line."""

import sys

from minicst.cli import main

if __name__ == "__main__":
    sys.exit(main())
