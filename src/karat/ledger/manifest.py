"""One manifest a stage, written last: a stage without one did not happen.

A manifest is a JSON file `manifests/<stage>.json` that carries its own content hash. Knows runs and bytes; nothing
about what a stage computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from karat.errors import LedgerError
from karat.identity import canonical_json, file_hash
from karat.ledger.artifacts import disk_error, ref_of, write_text
from karat.ledger.excuses import excuse_erased, explain_interrupted
from karat.ledger.lineage import (
    WORDS_FILE,
    ArtifactRef,
    ErasedWords,
    Manifest,
    Problem,
    TraceNode,
    stage_key,
    trace,
    tree_hash,
    verify_manifests,
)

__all__ = [
    "Manifest",
    "announce",
    "code_commit",
    "code_hash",
    "finished_stage",
    "is_run",
    "lock_run",
    "note_erased",
    "outputs_of",
    "package_versions",
    "read_erased",
    "read_manifest",
    "read_manifests",
    "stage_key",
    "trace_run",
    "verify_run",
    "withdraw",
    "write_manifest",
]

FORMAT = 1
ERASED = "erased.jsonl"
"""The list of words taken out of a run's files on request, in the run's directory."""
ANNOUNCED = ".next"
"""Ends the name of a manifest whose files are taking their places."""
PACKAGES = ("karat", "torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "scipy")
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


Describe = Callable[[ArtifactRef, Path, str | None], Mapping[str, Any]]
"""describe(artefact, its place on disk, the stage that read it) → facts."""


def write_manifest(run_dir: Path, manifest: Manifest) -> Path:
    """Write `manifests/<stage>.json` atomically, after checking that every output is there; returns its path.

    Raises: LedgerError for a stage name that is no file name, for an output that is missing or was altered since
        its reference was taken, and when the disk is full.
    """
    for reference in manifest.outputs:
        found = _found(run_dir, reference)
        if found is None or found.hash != reference.hash:
            state = "is not there" if found is None else "changed after its hash was taken"
            raise LedgerError(
                f"manifest of {manifest.stage}: the output {reference.path} {state}; write outputs first, then take "
                "their references, then the manifest"
            )
    path = _manifest_path(run_dir, manifest.stage)
    write_text(path, _rendered(manifest))
    return path


def read_manifest(run_dir: Path, stage: str) -> Manifest:
    """The manifest of a stage.

    Raises: LedgerError when there is none, when it is damaged, or when its content does not give its own id.
    """
    path = _manifest_path(run_dir, stage)
    manifest, stated = _parse(path)
    if manifest.id != stated:
        raise LedgerError(f"{path}: altered; its content gives {manifest.id}, it says {stated}. Run the stage again")
    return manifest


def read_manifests(run_dir: Path) -> list[Manifest]:
    """All manifests of a run in the order in which the stages began.

    Raises: LedgerError when the run has none or one is damaged.
    """
    manifests = [read_manifest(run_dir, path.stem) for path in _manifest_files(run_dir)]
    return sorted(manifests, key=_by_time)


def finished_stage(
    run_dir: Path,
    stage: str,
    inputs: Sequence[ArtifactRef],
    config: Mapping[str, Any],
    seeds: Mapping[str, int],
) -> Manifest | None:
    """The manifest of a stage that is already done with these very inputs, configuration and seeds.

    Returns: None when it has to be run: no manifest, another key, or an output that is no longer as it was.
    Raises: LedgerError for a damaged manifest: a doubt is never resolved by overwriting the evidence.
    """
    if not _manifest_path(run_dir, stage).exists():
        return None
    manifest = read_manifest(run_dir, stage)
    if manifest.key != stage_key(stage, inputs, config, seeds):
        return None
    for reference in manifest.outputs:
        found = _found(run_dir, reference)
        if found is None or found.hash != reference.hash:
            return None
    return manifest


def outputs_of(run_dir: Path, stage: str) -> frozenset[Path]:
    """Files and directories in a run that the standing manifest of a stage says it wrote, where they are; none without a manifest."""
    if not _manifest_path(run_dir, stage).exists():
        return frozenset()
    written = (run_dir / one.path for one in read_manifest(run_dir, stage).outputs if not one.outside)
    return frozenset(path for path in written if path.exists())


def announce(run_dir: Path, manifest: Manifest) -> None:
    """Write down, before the first of a stage's old files is replaced, what will stand once all are.

    Whoever verifies the run in between sees what happened. `withdraw` it once the manifest itself is written.
    """
    write_text(_announced_path(run_dir, manifest.stage), _rendered(manifest))


def withdraw(run_dir: Path, stage: str) -> None:
    """Take back what a stage announced: it is done, or was given up."""
    _announced_path(run_dir, stage).unlink(missing_ok=True)


def verify_run(run_dir: Path) -> list[Problem]:
    """Everything in a run that is not as its manifests say, file by file; empty = all of it is.

    Hashes every recorded file again, links what each stage read to what another wrote, and recomputes every
    manifest's own id. Inputs outside the run that are not on this machine come back as `unchecked`, what a stage was
    replacing when it was stopped as `interrupted`.

    Raises: LedgerError when the directory is not a run.
    """
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for path in _manifest_files(run_dir):
        shown = path.relative_to(run_dir).as_posix()
        try:
            manifest, stated = _parse(path)
        except LedgerError as error:
            problems.append(Problem(shown, "manifest", str(error), path.stem))
            continue
        if manifest.id != stated:
            detail = f"altered; its content gives {manifest.id}, it says {stated}"
            problems.append(Problem(shown, "manifest", detail, path.stem))
        elif path.read_text(encoding="utf-8") != _rendered(manifest):
            detail = "altered; it says the same in other bytes than karat wrote"
            problems.append(Problem(shown, "manifest", detail, path.stem))
        if manifest.stage != path.stem:
            problems.append(Problem(shown, "manifest", f"renamed; it is the manifest of {manifest.stage!r}", path.stem))
        manifests.append(manifest)
    manifests.sort(key=_by_time)
    references = {ref.path: ref for manifest in manifests for ref in (*manifest.inputs, *manifest.outputs)}
    found = {path: _found(run_dir, reference) for path, reference in references.items()}
    problems += verify_manifests(manifests, found)
    problems = explain_interrupted(problems, manifests, _announced(run_dir), found)
    erased = read_erased(run_dir)
    if not erased:
        return problems
    return excuse_erased(problems, _file_hashes(references.values()), _file_hashes(found.values()), erased)


def note_erased(run_dir: Path, one: ErasedWords) -> None:
    """Write down that words were taken out of a file, so that `verify_run` says so.

    Raises: LedgerError for any file but WORDS_FILE of an artefact, or when it cannot be written.
    """
    if not one.path.endswith("/" + WORDS_FILE):
        raise LedgerError(f"{one.path}: found another file than {WORDS_FILE}; expected one that holds words only")
    lines = [*map(dataclasses.asdict, read_erased(run_dir)), dataclasses.asdict(one)]
    write_text(run_dir / ERASED, "".join(canonical_json(line).decode() + "\n" for line in lines))


def read_erased(run_dir: Path) -> list[ErasedWords]:
    """What was taken out of a run's files on request, oldest first. Raises: LedgerError for a damaged list."""
    path = run_dir / ERASED
    try:
        return [ErasedWords(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"{path}: not readable as a list of erasures ({type(error).__name__}: {error})") from None


def trace_run(
    run_dir: Path,
    artefact: str | None = None,
    *,
    describe: Describe | None = None,
) -> tuple[TraceNode, ...]:
    """What an artefact of a run was made from, down to what came from outside.

    Args:
        artefact: as for `lineage.trace`; None = all that no other stage read.
        describe: what to say about an artefact at a place on disk, as a stage read it (for a snapshot: its root, votes and
            raters); the stage is None where no other artefact of the tree was made from it.
    Raises: LedgerError when the directory is not a run or no artefact answers to the name.
    """
    nodes = trace(read_manifests(run_dir), artefact)
    return nodes if describe is None else tuple(_described(node, run_dir, describe) for node in nodes)


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are installed, without importing them."""
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def code_commit(directory: Path | None = None) -> str | None:
    """The commit of the checkout that karat runs from, `-dirty` appended where tracked files differ; else None."""
    place = directory or Path(__file__).parent
    try:
        if directory is None:  # an installed copy may lie inside somebody else's checkout
            _git(place, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(place, "rev-parse", "HEAD")
        dirty = _git(place, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if dirty else "")


@functools.cache
def code_hash() -> str:
    """Hash of karat's own files as this process found them, whatever a version or a commit says of them."""
    package = Path(__file__).parent.parent
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return tree_hash((path.relative_to(package).as_posix(), file_hash(path)) for path in files)


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the run for this process; the lock goes with the process, however that ends.

    Raises: LedgerError when another process is working in the same run.
    """
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise disk_error(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(
                f"{run_dir}: another karat process is working in this run; wait for it or choose another name"
            ) from None
        yield


def is_run(run_dir: Path) -> bool:
    """Whether a directory holds at least one manifest."""
    return any((run_dir / "manifests").glob("*.json"))


def runs_within(directory: Path) -> list[Path]:
    """Every run in a directory, itself and those at any depth: of a sweep, or a reward trained into another run."""
    return sorted(place.parent for place in directory.rglob("manifests") if is_run(place.parent))


def _file_hashes(references: Iterable[ArtifactRef | None]) -> dict[str, str]:
    """Hash by path of every file of these artefacts."""
    known = [reference for reference in references if reference is not None]
    inside = {f"{each.path}/{name}": digest for each in known for name, digest in each.files}
    return inside | {each.path: each.hash for each in known if not each.files}


def _described(node: TraceNode, run_dir: Path, describe: Describe, reader: str | None = None) -> TraceNode:
    facts = describe(node.artefact, run_dir / node.artefact.path, reader)
    below = tuple(_described(source, run_dir, describe, node.stage) for source in node.fed_by)
    return dataclasses.replace(node, facts=dict(facts), fed_by=below)


def _found(run_dir: Path, reference: ArtifactRef) -> ArtifactRef | None:
    if not (run_dir / reference.path).exists():
        return None
    return ref_of(run_dir, Path(reference.path), reference.kind, reference.name)


def _manifest_path(run_dir: Path, stage: str) -> Path:
    if not STAGE_NAME.fullmatch(stage):
        raise LedgerError(f"stage {stage!r}: found a name that is no file name; expected letters, digits, . _ -")
    return run_dir / "manifests" / f"{stage}.json"


def _announced_path(run_dir: Path, stage: str) -> Path:
    return _manifest_path(run_dir, stage).with_suffix(ANNOUNCED)


def _announced(run_dir: Path) -> Iterator[Manifest]:
    for path in sorted((run_dir / "manifests").glob(f"*{ANNOUNCED}")):
        with contextlib.suppress(LedgerError):  # a damaged one explains nothing
            manifest, stated = _parse(path)
            if manifest.id == stated and manifest.stage == path.stem:
                yield manifest


def _manifest_files(run_dir: Path) -> list[Path]:
    if not is_run(run_dir):
        raise LedgerError(f"{run_dir}: found no manifests; expected the directory of a run (runs/<name>)")
    return sorted((run_dir / "manifests").glob("*.json"))


def _by_time(manifest: Manifest) -> tuple[str, str]:
    return str(manifest.started_at), str(manifest.finished_at)  # of an altered one they may be anything


def _rendered(manifest: Manifest) -> str:
    content = {"format": FORMAT, "id": manifest.id, **json.loads(canonical_json(manifest))}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _parse(path: Path) -> tuple[Manifest, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, stated = content.pop("format"), content.pop("id")
        if version != FORMAT:
            raise LedgerError(f"{path}: found manifest format {version}; this karat reads {FORMAT}. Update karat")
        for name in ("inputs", "outputs"):
            content[name] = tuple(_reference(values) for values in content[name])
        content["findings"], content["notes"] = tuple(content["findings"]), tuple(content["notes"])
        return Manifest(**content), stated
    except FileNotFoundError:
        raise LedgerError(f"{path}: no such manifest; the stage has not finished in this run") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise LedgerError(f"{path}: found a damaged manifest ({reason}); expected the JSON that karat wrote") from None


def _reference(values: Mapping[str, Any]) -> ArtifactRef:
    files = tuple((name, digest) for name, digest in values.get("files", ()))
    return ArtifactRef(values["name"], values["path"], values["hash"], values["kind"], files)


def _git(place: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(place), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout.strip()
