"""The audit card and summary.json: every figure with its interval, or an explicit "not measured".

Knows manifests, Findings and Estimates; computes none of them. The card's sections follow the disclosure list of
Casper et al. 2023 (arXiv:2307.15217 §5), model cards and CrowdWorkSheets (arXiv:2206.08931).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karat.errors import InputError
from karat.identity import canonical_json
from karat.ledger.artifacts import write_text
from karat.ledger.lineage import Manifest
from karat.records import Estimate, Finding

CARD_FORMAT = 1
NOT_MEASURED = "not measured"
POLICY_COLUMNS = ("gold", "proxy", "kl", "length", "distinct", "win_rate")

CARD_FIELDS: Mapping[str, Mapping[str, str]] = {
    "identity": {
        "name": "what the policy is called",
        "version": "which version",
        "weights": "content hash of the weights",
        "base_model": "what it was made from",
        "licences": "licences of model and data",
    },
    "people": {
        "recruitment": "how raters were found and chosen",
        "pay": "what they were paid",
        "training": "how they were trained, under which guideline",
        "demographics": "who they are beside who is served",
        "consent": "what they agreed to",
        "n_raters": "how many raters",
        "ids": "how their identities are kept",
    },
    "feedback": {
        "n_judgements": "judgements by kind",
        "n_missing": "judgements without a verdict",
        "selection": "how questions were chosen, with propensities",
        "agreement": "pairwise agreement of raters",
        "alpha": "Krippendorff's alpha",
        "reliability": "reliability of single raters",
        "screens": "screens for lapses and haste",
        "poison_scan": "search for planted votes",
    },
    "reward": {
        "likelihood": "which choice model was fitted",
        "disagreement": "how disagreement is modelled",
        "accuracy": "held-out accuracy",
        "nll": "held-out negative log-likelihood",
        "ece": "held-out calibration error",
        "accuracy_length_baseline": "held-out accuracy of length alone",
        "accuracy_ngram_baseline": "held-out accuracy of n-grams",
        "accuracy_shorter_won": "accuracy where the shorter response won",
        "by_topic": "accuracy by topic",
        "by_group": "accuracy by group of raters",
        "robustness": "robustness to perturbations",
        "adversarial": "adversarial inputs",
    },
    "policy": {
        "algorithm": "how the policy was trained",
        "kl": "distance from the reference, nats per response",
        "seeds": "seeds",
        "proxy": "learned score",
        "gold": "gold reward",
        "win_rate": "win rate against the baseline",
        "win_rate_people": "win rate against the baseline by people, blind",
        "length": "length of responses",
        "distinct": "diversity of responses",
        "calibration": "whether it says what it knows",
        "sycophancy": "agreement with wrong beliefs",
        "over_refusal": "refusals of harmless requests",
        "attack_success": "success of attacks",
        "capability_tax": "capabilities lost",
    },
    "pluralism": {
        "worst_group": "reward of the worst-served group",
        "majority_minority_gap": "gap between majority and minority",
        "jury_change": "share of verdicts that another jury would change",
    },
    "hindsight": {
        "false_positive_before": "wrong answers that raters approved, before training",
        "false_positive_after": "the same after training",
    },
    "system": {
        "audits": "audits made",
        "open_risks": "known open risks",
        "monitoring": "what is watched, with thresholds",
        "incidents": "incidents",
        "rollback": "how to go back",
    },
}

CHALLENGES: Mapping[str, str] = {
    "D1": "over-optimisation: the learned score against gold along √KL",
    "D2": "sycophancy, of the reward and of the policy",
    "D3": "truthfulness, calibration, and saying other than it believes",
    "D4": "mode collapse and flattening of diversity",
    "D5": "length and format exploitation",
    "D6": "misled evaluators",
    "D7": "jailbreaks, over-refusal, toxicity, adversarial inputs to reward and policy",
    "D8": "goal misgeneralisation, novel domains, safe-mode collapse, power-seeking, reward tampering",
    "D9": "bias inherited from pretraining; opinion shift by group",
    "D10": "joint training: reward accuracy on the moving policy's samples",
    "D11": "challenges of the field's survey without a probe, a threshold or a mitigation",
    "D12": "what the policy would be without a rater, a group or a guideline",
    "D13": "whether outsiders can verify the record without its texts",
    "D14": "people who watch and steer the optimisation",
}


SPEAK_OF = {
    "gate.sycophancy": "D2",
    "gate.likelihood": "D5",
    "gate.matched_length": "D5",
    "gate.shorter_won": "D5",
}
"""Findings of the reward's gate that speak of a challenge beside those named after one."""


@dataclass(frozen=True)
class Fact:
    """One entry of the card that is not an Estimate."""

    value: Any
    """Plain value or text."""
    method: str = "declared"
    """How it is known: declared by the operator, counted, recorded."""
    n: int | None = None
    """On how many, where that has a meaning."""


@dataclass(frozen=True)
class CardInput:
    """What the card is filled from."""

    run_id: str
    """The run."""
    manifests: tuple[Manifest, ...]
    """All of its manifests, in order."""
    figures: Mapping[str, Estimate | Fact] = field(default_factory=dict)
    """By `section.field` as in CARD_FIELDS."""
    stage_of: Mapping[str, str] = field(default_factory=dict)
    """Which stage a `section.field` comes from, so that its inputs and time can be named."""
    findings: tuple[Finding, ...] = ()
    """Gate, watcher and audits."""
    unsafe: tuple[str, ...] = ()
    """Unsafe options that were set, in words."""


def audit_card(card: CardInput) -> dict[str, Any]:
    """The audit card as plain JSON values, unsafe options first.

    Every field is {value, low, high, n, method} with the stage, its input hashes and its time where known, or
    {"not measured": what it would say}.

    Raises: InputError for a figure that is not a field of the card (the card has no place to hide one).
    """
    known = {f"{section}.{name}" for section, fields in CARD_FIELDS.items() for name in fields}
    unknown = sorted(set(card.figures) - known)
    if unknown:
        raise InputError(f"audit card: found the figure {unknown[0]!r}; expected one of {', '.join(sorted(known))}")
    stages = {manifest.stage: manifest for manifest in card.manifests}
    sections = {
        section: {
            name: _field(
                card.figures.get(f"{section}.{name}"), meaning, stages.get(card.stage_of.get(f"{section}.{name}", ""))
            )
            for name, meaning in fields.items()
        }
        for section, fields in CARD_FIELDS.items()
    }
    return {
        "format": CARD_FORMAT,
        "unsafe": list(card.unsafe),
        "run": card.run_id,
        **sections,
        "gates": [_finding(finding) for finding in card.findings if finding.name.startswith("gate.")],
        "challenges": challenge_rows(card.findings),
        "findings": [
            _finding(finding) for finding in card.findings if not finding.name.startswith(("gate.", "challenge."))
        ],
        "lineage": [_lineage(manifest) for manifest in card.manifests],
    }


def challenge_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row for each challenge D1 … D14: "not measured" until a Finding named `challenge.D<k>…`, or one of the gate's, exists.

    A row passes only where all that was measured of it passed.
    """
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        match = re.match(r"challenge\.(D\d+)", finding.name)
        about = match.group(1) if match else SPEAK_OF.get(finding.name)
        if about and (match or finding.status != NOT_MEASURED):
            found.setdefault(about, []).append(finding)
    return [
        {
            "id": name,
            "challenge": meaning,
            "status": _worst([finding.status for finding in found.get(name, [])]),
            "findings": [_finding(finding) for finding in found.get(name, [])],
        }
        for name, meaning in CHALLENGES.items()
    ]


def summary(
    policies: Mapping[str, Mapping[str, Estimate]],
    *,
    ppo_minus_sft: Mapping[str, Estimate],
    optimised: str = "ppo",
    gate: Sequence[Finding],
    manifests: Sequence[Manifest],
    report: str,
    unsafe: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What summary.json holds: figures as {value, low, high, n, method}, unsafe options first.

    Args:
        policies: policy → column → Estimate; the columns gold, proxy, kl, length, distinct and win_rate are there
            for every policy, "not measured" where nothing was given; further columns are kept.
        ppo_minus_sft: column → Estimate of the paired difference.
        optimised: which policy that is; the key is `<optimised>_minus_sft`.
        gate: everything that may refuse the reward; it passed where none of it failed and all of it was measured.
        report: path of the report, relative to the run.
        extra: further top-level keys (run, seed, held-out figures of the reward …).
    """
    return {
        "unsafe": list(unsafe),
        **(extra or {}),
        "policies": {name: _columns(columns) for name, columns in policies.items()},
        f"{optimised}_minus_sft": {
            name: estimate_fields(value) for name, value in ({"gold": None} | dict(ppo_minus_sft)).items()
        },
        "gate": {
            "passed": not {finding.status for finding in gate} & {"fail", NOT_MEASURED} if gate else None,
            "findings": [_finding(finding) for finding in gate],
        },
        "stages": {manifest.stage: {"seconds": manifest.seconds, "id": manifest.id} for manifest in manifests},
        "report": report,
    }


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """Write summary.json (or the card) atomically, keys in their own order, so that what is unsafe comes first."""
    canonical_json(dict(content))  # refuses NaN and anything that is not plain
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=_json_default) + "\n")


def estimate_fields(estimate: Estimate | None) -> dict[str, Any]:
    """{value, low, high, n, method} of an Estimate; method "not measured" where there is none."""
    if estimate is None:
        return {"value": None, "low": None, "high": None, "n": 0, "method": NOT_MEASURED}
    return {
        "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n, "method": estimate.method,
    }  # fmt: skip


def finding_of(fields: Mapping[str, Any]) -> Finding:
    """The Finding that a manifest holds as plain values."""
    estimate = fields.get("estimate")
    return Finding(**{**fields, "estimate": Estimate(**estimate) if estimate else None})


def _columns(columns: Mapping[str, Estimate]) -> dict[str, Any]:
    names = [*POLICY_COLUMNS, *(name for name in columns if name not in POLICY_COLUMNS)]
    return {name: estimate_fields(columns.get(name)) for name in names}


def _field(entry: Estimate | Fact | None, meaning: str, manifest: Manifest | None) -> dict[str, Any]:
    if entry is None:
        return {NOT_MEASURED: meaning}
    if isinstance(entry, Fact):
        fields: dict[str, Any] = {"value": entry.value, "low": None, "high": None, "n": entry.n, "method": entry.method}
    else:
        fields = estimate_fields(entry)
    fields["meaning"] = meaning
    if manifest is not None:
        fields["stage"] = manifest.stage
        fields["inputs"] = [reference.hash for reference in manifest.inputs]
        fields["commit"] = manifest.commit
        fields["time"] = manifest.finished_at
    return fields


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "question": finding.question,
        "status": finding.status,
        "estimate": None if finding.estimate is None else estimate_fields(finding.estimate),
        "threshold": finding.threshold,
        "detail": finding.detail,
    }


def _lineage(manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "id": manifest.id,
        "key": manifest.key,
        "inputs": {reference.path: reference.hash for reference in manifest.inputs},
        "outputs": {reference.path: reference.hash for reference in manifest.outputs},
        "commit": manifest.commit,
        "finished_at": manifest.finished_at,
    }


def _json_default(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _worst(statuses: Sequence[str]) -> str:
    for status in ("fail", "warn", "info", "pass"):
        if status in statuses:
            return status
    return NOT_MEASURED
