"""`python -m karat`, which launchers of several processes start: the command line."""

import sys

from karat.cli import main

if __name__ == "__main__":
    sys.exit(main())
