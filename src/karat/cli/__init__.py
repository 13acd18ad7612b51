"""The command line: one thin command for each recipe, which imports its room only when it runs.

Results go to standard output, progress and errors to standard error. A wrong input is one line and exit code 2;
interrupting is safe (130) and the same command continues, or the line says what holds instead. Knows no method: every command hands over to a room.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

import typer

# commands appear in the help in the order in which their modules are imported
# isort: off
from karat.cli import river, sampling, talking, scoring, personal, people, exchange, checks  # noqa: F401
from karat.cli import quality, record, upkeep, setup  # noqa: F401

# isort: on
from karat.cli.options import app
from karat.cli.processes import INTERRUPTED
from karat.cli.working import parse_seeds
from karat.errors import KaratError
from karat.ranks import says_interrupted

__all__ = ["UsageError", "app", "main", "parse_seeds"]

RESUMES = "karat: interrupted; the same command continues where it stopped"
ANEW = "karat: interrupted; nothing was written, and the same command begins anew"
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What a system says of a path that is the user's to mend; without a path it is ours."""
NO_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory", "not enough memory")
"""What Python, numpy and torch say where there is none left."""
ENDED = {
    "chat": "karat: interrupted; what was said is not kept, and the same command begins a new conversation",
    **dict.fromkeys(("generate", "best-of-n", "score", "import", "export", "backup", "restore", "bundle"), ANEW),
    **dict.fromkeys(("arena", "quality", "trial", "verify", "disclose", "trace", "doctor"), ANEW),
}
"""What holds for commands that do not continue."""
# typer carries its own copy of click, whose root of usage errors has no public name.
UsageError: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 1 a check that failed, 2 a wrong input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for i, one in enumerate(given):
        # what is typed is kept in records of UTF-8; a file that is there may be called as it is
        if any("\ud800" <= sign <= "\udfff" for sign in one) and not os.path.lexists(one):
            option = f"{given[i - 1]}: " if i and given[i - 1].startswith("--") else ""
            return _complain(f"{option}found {one!r}, bytes that are not UTF-8; expected text")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors == "strict":
        sys.stdin.reconfigure(errors="surrogateescape")  # who reads it says in one line what is no text
    try:
        # standalone_mode=False: click hands its errors over instead of exiting by its own rules.
        code = typer.main.get_command(app).main(
            args=given or ["--help"], prog_name="karat", standalone_mode=False, obj=given
        )
        sys.stdout.flush()
    except KaratError as error:
        return _complain(str(error)) if str(error) else 2  # another of several processes has said it
    except UsageError as error:
        said = error.format_message().rstrip(".").replace("Value error, ", "")  # type: ignore[attr-defined]
        return _complain(f"{said}; see `{_where(error)} --help`")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        said = f"(os error {getattr(error, 'errno', None)}) {error}"  # safetensors tells the number in words only
        named = getattr(error, "filename", None)
        if named and getattr(error, "errno", None) in REFUSED:
            return _complain(f"{named}: {error.strerror}; expected a place that can be read and written")  # type: ignore[attr-defined]
        if any(sign in f"{type(error).__name__}: {error}" for sign in NO_MEMORY):
            return _complain(
                f"the memory does not suffice ({str(error)[:160] or 'nothing is left'}); ask for less at once: fewer rows, smaller "
                "batches (batch_size, token_budget) or a smaller model"
            )
        if not any(f"(os error {full})" in said for full in (errno.ENOSPC, errno.EDQUOT)):
            raise
        place = named or "a write failed"
        return _complain(f"{place}: the disk is full; free some space and run the same command again")
    if code == INTERRUPTED and says_interrupted():  # typer itself turns an interruption into this code, silently
        print(f"\n{ENDED.get(given[0] if given else '', RESUMES)}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _where(error: Exception) -> str:
    """The command that a wrong usage is of, as it is typed."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "karat"


def _complain(message: str) -> int:
    # what a file or a server said is quoted in messages: of it nothing may command the terminal
    said = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in " ".join(message.split()))
    print(f"karat: {''.join(said)}", file=sys.stderr)
    return 2
