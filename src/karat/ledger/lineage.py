"""Who fed on whom: manifests as a graph of artefacts, and what follows from it. Pure: touches no file.

Knows artefacts, the stages that wrote them, and content hashes; nothing about models, votes or disks. An artefact
is identified by what it contains: a stage fed on another when it read, by hash, what the other wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from karat.errors import LedgerError
from karat.identity import content_id

ProblemKind = Literal["altered", "missing", "added", "manifest", "stale", "interrupted", "unchecked", "erased"]
WORDS_FILE = "words.jsonl"
"""Name of the file of an artefact that holds people's words and nothing else: what may be erased from it is named by
the rest of the artefact, and nothing that is computed depends on it."""

ASKED = "asked"
"""Kind of a snapshot of judgements that a stage asked for while it ran: an output of that stage, from which its other
outputs were made."""
SNAPSHOTS = ("snapshot", ASKED)
"""Kinds of artefacts that hold judgements."""
METRICS = "metrics"
"""Kind of the figures of a stage's training steps, a line a step: an end in itself, from which nothing is made."""


@dataclass(frozen=True)
class ArtifactRef:
    """A file or directory as it was when a stage read or wrote it."""

    name: str
    """What it is to the stage: `model`, `snapshot`, `metrics`."""
    path: str
    """Relative to the run's directory, with `/`; `../…` where it lies beside the run, absolute farther away."""
    hash: str
    """`sha256:…` of a file, `tree:…` of a directory."""
    kind: str
    """file, directory, or a narrower word of the stage's own (`snapshot`, `model`)."""
    files: tuple[tuple[str, str], ...] = ()
    """(relative name, hash) of every file of a directory, sorted, so that the altered one can be named."""

    @property
    def outside(self) -> bool:
        """True = it lies outside the run."""
        return self.path.startswith(("/", "../"))


@dataclass(frozen=True)
class Manifest:
    """What a finished stage read, wrote and was told."""

    run_id: str
    """The run it belongs to."""
    stage: str
    """The stage's name, unique within the run."""
    inputs: tuple[ArtifactRef, ...]
    """What it read."""
    outputs: tuple[ArtifactRef, ...]
    """What it wrote."""
    config: Mapping[str, Any]
    """Its configuration, plain values."""
    seeds: Mapping[str, int]
    """Seeds by purpose."""
    versions: Mapping[str, str]
    """Versions of karat, Python and the packages that compute."""
    commit: str | None
    """Commit of the source, `-dirty` appended where files differed; None = not a checkout."""
    started_at: str
    """ISO 8601 UTC."""
    finished_at: str
    """ISO 8601 UTC."""
    seconds: float
    """Wall-clock seconds of work, not counting time between an interruption and the resume."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the stage: plain values or the fields of an Estimate."""
    findings: Sequence[Mapping[str, Any]] = ()
    """The fields of its Findings."""
    notes: Sequence[str] = ()
    """What a reader must know, unsafe options first."""

    @property
    def id(self) -> str:
        """Content hash of everything above."""
        return content_id("manifest", self)

    @property
    def asked(self) -> tuple[ArtifactRef, ...]:
        """Outputs that the others were made from."""
        return tuple(reference for reference in self.outputs if reference.kind == ASKED)

    def sources_of(self, output: ArtifactRef) -> tuple[ArtifactRef, ...]:
        """What one of its outputs was made from."""
        return self.inputs if output.kind == ASKED else (*self.inputs, *self.asked)

    @property
    def key(self) -> str:
        """The stage_key under which the finished stage can be used again."""
        return stage_key(self.stage, self.inputs, self.config, self.seeds)


@dataclass(frozen=True)
class Problem:
    """One thing that is not as the manifests say."""

    path: str
    """The file, relative to the run's directory."""
    kind: ProblemKind
    """altered, missing, added, manifest (damaged or contradicting itself), stale (rewritten after it had been
    read), interrupted (a stage was stopped while its new files took their places), unchecked (an input outside the run
    that is not on this machine), or erased (words taken out on request)."""
    detail: str
    """What was expected and what was found, one line."""
    stage: str
    """The stage whose manifest records it."""

    @property
    def fatal(self) -> bool:
        """False = it could not be checked here, or was erased on request: no sign of an alteration."""
        return self.kind not in ("unchecked", "erased")


@dataclass(frozen=True)
class ErasedWords:
    """That words were taken out of a file of a run on request."""

    path: str
    """The file, relative to the run's directory; its name is WORDS_FILE."""
    before: str
    """Its hash before."""
    after: str
    """Its hash after."""
    reason: str
    """Who asked for it and why."""
    at: float
    """When, seconds since the epoch."""


@dataclass(frozen=True)
class TraceNode:
    """An artefact, the stage that wrote it, and what that stage read."""

    artefact: ArtifactRef
    """The artefact."""
    stage: str | None
    """The stage that wrote it; None = it came from outside."""
    fed_by: tuple[TraceNode, ...]
    """What the stage read; empty for what came from outside and for a repeated node."""
    repeated: bool = False
    """True = shown in full earlier in the tree."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a caller who can read the artefact said about it: a snapshot's root, votes and raters."""


def stage_key(stage: str, inputs: Iterable[ArtifactRef], config: Mapping[str, Any], seeds: Mapping[str, int]) -> str:
    """The identity of a piece of work: equal keys mean that a finished stage need not be repeated.

    Paths do not count, contents do: a run that was moved keeps its keys.
    """
    contents = sorted([reference.name, reference.hash] for reference in inputs)
    return content_id("stage", [stage, contents, config, seeds])


def tree_hash(files: Iterable[tuple[str, str]]) -> str:
    """The hash of a directory from the (relative name, file hash) of its files, whatever their order."""
    return content_id("tree", sorted([name, digest] for name, digest in files))


def verify_manifests(manifests: Sequence[Manifest], found: Mapping[str, ArtifactRef | None]) -> list[Problem]:
    """Where what is on disk, or what another stage says, differs from what the manifests record.

    Args:
        manifests: of one run.
        found: for every recorded path the reference computed from disk now; None = nothing is there.
    Returns: problems in the order of stages and artefacts; empty = every recorded byte is as it was.
    """
    written = {reference.path: (manifest, reference) for manifest in manifests for reference in manifest.outputs}
    problems: list[Problem] = []
    for manifest in manifests:
        for reference in manifest.outputs:
            owner, latest = written[reference.path]
            if owner is manifest or latest.hash == reference.hash:
                problems += compare(reference, found.get(reference.path), manifest.stage)
        for reference in manifest.inputs:
            if reference.path not in written:
                problems += compare(reference, found.get(reference.path), manifest.stage)
                continue
            owner, latest = written[reference.path]
            if latest.hash != reference.hash:
                problems.append(
                    Problem(
                        reference.path,
                        "stale",
                        f"{manifest.stage} read {reference.hash}, {owner.stage} has written {latest.hash} since; "
                        f"run {manifest.stage} again",
                        manifest.stage,
                    )
                )
    return list(dict.fromkeys(problems))


def stale_stages(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Stages whose figures are of something that has been made anew since, and what that is, in words.

    A stage is stale where an artefact that it read was rewritten by another one, or by a stage that is stale itself.

    Args:
        manifests: of one run.
    Returns: reasons by stage, in the order of the manifests.
    """
    written = {reference.path: (manifest.stage, reference) for manifest in manifests for reference in manifest.outputs}
    found: dict[str, str] = {}
    grown = True
    while grown:
        grown = False
        for manifest in manifests:
            if manifest.stage in found:
                continue
            for reference in manifest.inputs:
                owner, latest = written.get(reference.path, (manifest.stage, reference))
                if latest.hash != reference.hash or (owner in found and owner != manifest.stage):
                    found[manifest.stage] = f"it read {reference.path} as it was before {found.get(owner) or owner}"
                    grown = True
                    break
    return {manifest.stage: found[manifest.stage] for manifest in manifests if manifest.stage in found}


def compare(recorded: ArtifactRef, found: ArtifactRef | None, stage: str) -> list[Problem]:
    """The problems of one artefact, each file of a directory named on its own."""
    if found is None:
        kind: ProblemKind = "unchecked" if recorded.outside else "missing"
        return [Problem(recorded.path, kind, f"recorded as {recorded.hash}; nothing is there", stage)]
    if found.hash == recorded.hash:
        return []
    if not recorded.files:
        return [Problem(recorded.path, "altered", f"recorded as {recorded.hash}; found {found.hash}", stage)]
    before, after = dict(recorded.files), dict(found.files)
    problems: list[Problem] = []
    for name in sorted(before | after):
        path = f"{recorded.path}/{name}"
        if name not in after:
            problems.append(Problem(path, "missing", f"recorded as {before[name]}; nothing is there", stage))
        elif name not in before:
            problems.append(Problem(path, "added", f"not recorded; found {after[name]}", stage))
        elif before[name] != after[name]:
            detail = f"recorded as {before[name]}; found {after[name]}"
            problems.append(Problem(path, "altered", detail, stage))
    if not problems:  # the list of files in the manifest does not give the hash beside it
        problems.append(Problem(recorded.path, "manifest", "its list of files does not give its hash", stage))
    return problems


def trace(manifests: Sequence[Manifest], artefact: str | None = None) -> tuple[TraceNode, ...]:
    """What an artefact was made from, back to what came from outside.

    Args:
        manifests: of one run.
        artefact: a path, a hash (or its beginning), a stage, or `stage/name`; None = every artefact that no
            other stage read, but figures of training steps.
    Returns: one tree for each artefact meant; inputs are linked to the stage that wrote the same path and hash.
    Raises: LedgerError where no artefact answers to the name.
    """
    writers = _writers(manifests)
    seen: set[tuple[str, str]] = set()
    return tuple(_node(reference, writers, seen) for reference in _meant(manifests, artefact))


def affected(manifests: Sequence[Manifest], artefact: str) -> tuple[tuple[str, ArtifactRef], ...]:
    """Everything made, directly or through other artefacts, from one artefact: (stage, artefact), in stage order.

    Raises: LedgerError where no artefact answers to the name.
    """
    reached = {reference.hash for reference in _meant(manifests, artefact)}
    result: list[tuple[str, ArtifactRef]] = []
    done: set[str] = set()
    grown = True
    while grown:
        grown = False
        for manifest in manifests:
            made = [one for one in manifest.outputs if any(x.hash in reached for x in manifest.sources_of(one))]
            if manifest.stage in done or not made:
                continue
            done.add(manifest.stage)
            grown = True
            for reference in made:
                reached.add(reference.hash)
                result.append((manifest.stage, reference))
    order = {manifest.stage: position for position, manifest in enumerate(manifests)}
    return tuple(sorted(result, key=lambda item: order[item[0]]))


def trace_lines(nodes: Iterable[TraceNode], *, indent: str = "") -> list[str]:
    """The trees as indented text, one artefact a line."""
    lines: list[str] = []
    for node in nodes:
        origin = f"written by {node.stage}" if node.stage else "from outside"
        facts = "".join(f"; {name} {_told(value)}" for name, value in node.facts.items())
        again = "; see above" if node.repeated else ""
        lines.append(f"{indent}{node.artefact.path}  [{short(node.artefact.hash)}] {origin}{facts}{again}")
        lines += trace_lines(node.fed_by, indent=indent + "  ")
    return lines


def _told(fact: Any) -> str:
    return " ".join(map(str, fact)) if isinstance(fact, list | tuple) else str(fact)


def short(digest: str) -> str:
    """A hash as people compare it: its tag and first 12 digits."""
    tag, _, digits = digest.partition(":")
    return f"{tag}:{digits[:12]}" if digits else digest[:12]


def _writers(manifests: Sequence[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(reference.path, reference.hash): manifest for manifest in manifests for reference in manifest.outputs}


def _node(
    reference: ArtifactRef,
    writers: Mapping[tuple[str, str], Manifest],
    seen: set[tuple[str, str]],
) -> TraceNode:
    key = (reference.path, reference.hash)
    writer = writers.get(key)
    stage = writer.stage if writer else None
    if key in seen:
        return TraceNode(reference, stage, (), repeated=bool(writer and writer.inputs))
    seen.add(key)
    if writer is None:
        return TraceNode(reference, None, ())
    sources = writer.sources_of(reference)
    return TraceNode(reference, stage, tuple(_node(source, writers, seen) for source in sources))


def _meant(manifests: Sequence[Manifest], artefact: str | None) -> list[ArtifactRef]:
    outputs = [(manifest.stage, reference) for manifest in manifests for reference in manifest.outputs]
    if artefact is None:
        sources = (reference for manifest in manifests for reference in (*manifest.inputs, *manifest.asked))
        read = {(reference.path, reference.hash) for reference in sources}
        ends = (reference for _, reference in outputs if reference.kind != METRICS)
        return [reference for reference in ends if (reference.path, reference.hash) not in read]
    sources = [(manifest.stage, reference) for manifest in manifests for reference in manifest.inputs]
    name = artefact.rstrip("/")
    found = _answering(outputs, name) or [reference for _, reference in _named(sources, name)]
    if not found:
        known = ", ".join(reference.path for _, reference in outputs) or "none"
        raise LedgerError(
            f"trace: found no artefact {artefact!r}; expected a path, hash, stage or stage/name of: {known}"
        )
    return list(dict.fromkeys(found))


def _answering(outputs: Sequence[tuple[str, ArtifactRef]], name: str) -> list[ArtifactRef]:
    exact = [reference for _, reference in _named(outputs, name)]
    return exact or [reference for stage, reference in outputs if name in (stage, f"{stage}/{reference.name}")]


def _named(references: Sequence[tuple[str, ArtifactRef]], name: str) -> list[tuple[str, ArtifactRef]]:
    return [
        (stage, reference)
        for stage, reference in references
        if reference.path == name or (len(name) >= 6 and (reference.hash.startswith(name) or _digits(reference, name)))
    ]


def _digits(reference: ArtifactRef, name: str) -> bool:
    return reference.hash.partition(":")[2].startswith(name)
