"""`python -m karat`, which launchers of several processes start: the command line."""

from karat.cli import main
from karat.cli.processes import leave

if __name__ == "__main__":
    leave(main())
