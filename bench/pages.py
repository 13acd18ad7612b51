"""Tables that studies write into the pages of docs/, between two marks."""

from __future__ import annotations

from pathlib import Path


def put_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises: SystemExit (one line) for a page without them.
    """
    start, end = marks
    before, found_start, rest = page.read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise SystemExit(f"bench: found no marks {start} … {end} in {page.name}; put them where the table belongs")
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")
