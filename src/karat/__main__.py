"""The program `karat`, and `python -m karat`, which launchers of several processes start: the command line."""

from karat.cli import main
from karat.cli.processes import leave


def run() -> None:
    """Run the command that was typed, and end this process with its exit code."""
    leave(main())


if __name__ == "__main__":
    run()
