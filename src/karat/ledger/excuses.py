"""Differences between a run and its manifests that have a known cause: words taken out on request, and a stage that was
stopped while its new files took the places of the old. Pure: touches no file.

Knows problems and hashes. A cause is believed only where the bytes that are there are the very ones it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from karat.ledger.lineage import WORDS_FILE, ArtifactRef, ErasedWords, Manifest, Problem


def excuse_erased(
    problems: Sequence[Problem], recorded: Mapping[str, str], found: Mapping[str, str], erased: Sequence[ErasedWords]
) -> list[Problem]:
    """The same problems, where those of words that were taken out on request say "erased" instead of "altered".

    Args:
        recorded, found: hashes of files by path, as a manifest has them and as they are now.
        erased: in the order in which words were taken out; each goes on from the one before.
    """
    result = []
    for problem in problems:
        digest, reasons = recorded.get(problem.path), []
        for one in erased:
            if one.path == problem.path and one.before == digest and one.path.endswith("/" + WORDS_FILE):
                digest = one.after
                reasons.append(one.reason)
        if problem.kind == "altered" and reasons and digest == found.get(problem.path):
            detail = f"words were taken out on request ({'; '.join(dict.fromkeys(reasons))})"
            problem = Problem(problem.path, "erased", detail, problem.stage)
        result.append(problem)
    return result


def explain_interrupted(
    problems: Sequence[Problem],
    standing: Iterable[Manifest],
    announced: Iterable[Manifest],
    found: Mapping[str, ArtifactRef | None],
) -> list[Problem]:
    """The same problems, where those of a stage that was stopped while its files were being replaced say "interrupted".

    Only of an artefact that is now, whole and to the byte, what the stage had announced it would put there; or that
    is not there at all, because a directory leaves its place before the new one takes it. The problem stays fatal.

    Args:
        standing: the manifests of the run.    announced: what stages were about to put into their places.
        found: references by path as they are on disk now; None = nothing is there.
    """
    coming = {(one.stage, reference.path): reference.hash for one in announced for reference in one.outputs}
    owned = {one.stage: [reference.path for reference in one.outputs] for one in standing}
    result = []
    for problem in problems:
        for path in owned.get(problem.stage, ()):
            if problem.kind not in ("altered", "missing", "added") or not _within(problem.path, path):
                continue
            now, new = found.get(path), coming.get((problem.stage, path))
            if new is not None and (now is None or now.hash == new):
                detail = (
                    f"{problem.stage} was stopped while its new files took their places; run the same command again"
                )
                problem = Problem(path, "interrupted", detail, problem.stage)
                break
        result.append(problem)
    return list(dict.fromkeys(result))


def _within(path: str, artefact: str) -> bool:
    return path == artefact or path.startswith(artefact + "/")
