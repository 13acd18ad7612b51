"""UKPConvArg1 as its authors publish it, as the three files that `examples/ukp.yaml` reads.

    python examples/ukp_files.py data/UKPConvArg1-full-XML data/ukp

The first is the folder of that name in the repository UKPLab/acl2016-convincing-arguments on GitHub (32 files of XML; the
corpus is CC-BY, Habernal & Gurevych 2016). Crowd workers get numbers in the place of their ids.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

CHOICES = {"a1": "a", "a2": "b", "equal": "tie"}
"""What a worker or the consensus said, in karat's words."""


def converted(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of votes, arguments and consensus in a folder of XML. Raises: SystemExit, in one line, where it holds none."""
    files = sorted(folder.glob("*.xml"))
    if not files:
        sys.exit(f"ukp_files: found no .xml in {folder}; expected the folder UKPConvArg1-full-XML")
    votes: list[dict[str, Any]] = []
    arguments: dict[str, dict[str, Any]] = {}
    consensus: list[dict[str, Any]] = []
    raters: dict[str, str] = {}
    tasks: dict[str, str] = {}
    for file in files:
        topic, _, stance = file.stem.rpartition("_")
        try:
            pairs = ElementTree.parse(file).getroot().iter("annotatedArgumentPair")
        except ElementTree.ParseError as error:
            sys.exit(f"ukp_files: {file} is no XML ({error}); download it again")
        for pair in pairs:
            a, b = (_argument(pair, place, topic, stance, arguments) for place in ("arg1", "arg2"))
            known = {"pair": pair.findtext("id"), "a": a, "b": b}
            consensus.append(known | {"gold": CHOICES.get(pair.findtext("goldLabel") or "")})
            said = [known | _vote(one, raters, tasks) for one in pair.iter("mTurkAssignment")]
            if wrong := [one for one in said if one["choice"] is None]:
                sys.exit(
                    f"ukp_files: {file}: a vote on {wrong[0]['pair']} is none of {', '.join(CHOICES)}; download it again"
                )
            votes += said
    if not votes:
        sys.exit(
            f"ukp_files: found no votes in {len(files)} files of {folder}; expected the folder UKPConvArg1-full-XML"
        )
    return votes, list(arguments.values()), consensus


def _vote(one: ElementTree.Element, raters: dict[str, str], tasks: dict[str, str]) -> dict[str, Any]:
    """What one worker said of a pair."""
    return {
        "annotator": _numbered(raters, "worker", one.findtext("turkID")),
        "choice": CHOICES.get(one.findtext("value") or ""),
        "reason": one.findtext("reason"),
        "task": _numbered(tasks, "task", one.findtext("hitID")),
        "accepted_at": _moment(one.findtext("assignmentAcceptTime")),
        "submitted_at": _moment(one.findtext("assignmentSubmitTime")),
    }


def _argument(
    pair: ElementTree.Element, place: str, topic: str, stance: str, arguments: dict[str, dict[str, Any]]
) -> str:
    """The id of one of a pair's arguments, which is written down the first time."""
    name = pair.findtext(f"{place}/id") or ""
    row = {"id": name, "topic": topic, "stance": stance, "text": pair.findtext(f"{place}/text")}
    arguments.setdefault(name, row)
    return name


def _numbered(known: dict[str, str], kind: str, name: str | None) -> str:
    return known.setdefault(name or "", f"{kind}-{len(known) + 1:05d}")


def _moment(text: str | None) -> str | None:
    """`2016-01-31 16:53:19.0 UTC` as ISO 8601."""
    return None if text is None else text.removesuffix(" UTC").partition(".")[0].replace(" ", "T") + "Z"


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            said = {key: value for key, value in row.items() if value is not None}
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
    return len(rows)


def main(arguments: list[str]) -> None:
    """Write votes.jsonl.gz, arguments.jsonl.gz and gold.jsonl.gz."""
    if len(arguments) != 2:
        sys.exit("ukp_files: expected two folders: python examples/ukp_files.py data/UKPConvArg1-full-XML data/ukp")
    source, target = map(Path, arguments)
    parts = dict(zip(("votes", "arguments", "gold"), converted(source), strict=True))
    try:
        target.mkdir(parents=True, exist_ok=True)
        counts = [f"{_write(target / f'{name}.jsonl.gz', rows):,} {name}" for name, rows in parts.items()]
    except OSError as error:
        sys.exit(f"ukp_files: {error.filename} cannot be written ({error.strerror}); give a folder that can be")
    print(f"{target}: {', '.join(counts)}")


if __name__ == "__main__":
    main(sys.argv[1:])
