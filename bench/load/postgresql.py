"""A PostgreSQL server for as long as somebody holds the pipe; run by the crowd's environment, which has pgserver.

    python -m bench.load.postgresql DIRECTORY

Prints one JSON object (url, process id of the server) and stops the server when standard input ends. Settings are
PostgreSQL's own: every commit waits for the disk.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Start, say where, wait, stop."""
    import pgserver

    directory = Path(sys.argv[1])
    server = pgserver.get_server(directory, cleanup_mode="stop")
    print(json.dumps({"url": server.get_uri(), "pid": server.get_pid()}), flush=True)
    sys.stdin.read()
    server.cleanup()


if __name__ == "__main__":
    main()
