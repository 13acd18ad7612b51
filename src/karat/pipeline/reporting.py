"""The last station: page, audit card and summary, filled from manifests and evaluation.json and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from karat.config import plain
from karat.evaluate.table import names_in_order
from karat.ledger.manifest import Manifest, read_manifests
from karat.pipeline.arena_rows import people_stage, shown_arenas, with_people
from karat.pipeline.charts import at_equal_kl, curves, frontier
from karat.pipeline.current import collected, current, last_findings, newest_round, policy_of, round_of, unmeasured
from karat.pipeline.recorded import recorded_object, run_settings
from karat.pipeline.stages import findings_of
from karat.records import Estimate, Finding
from karat.report.card import CardInput, Fact, audit_card, summary, write_summary
from karat.report.figures import AtlasCell, Bin
from karat.report.page import (
    AttributedText,
    FeedbackSummary,
    ReportInput,
    ResponseShown,
    SampleShown,
    write_page,
)
from karat.report.titles import ALGORITHMS, algorithm_in_words
from karat.reward.gate import OWN, gate_checks

REPORT, EVALUATION = "report.html", "evaluation.json"


def write_report(directory: Path) -> dict[str, Any]:
    """Write report.html, card.json and summary.json of a run; returns the summary with the run's directory.

    Raises: LedgerError when the directory holds no run.
    """
    recorded_stages = read_manifests(directory)
    settings = run_settings(directory)
    manifests, left_out = current(recorded_stages, settings["config"])
    # What a policy was trained under stays true of it, whatever configuration the directory was last opened with.
    recorded = [note for manifest in recorded_stages for note in manifest.metrics.get("unsafe", ())]
    unsafe = list(dict.fromkeys([*recorded, *settings["unsafe"]]))
    content = report_input(directory, settings["title"], unsafe, manifests)
    by_stage = {manifest.stage: manifest for manifest in manifests}
    left_out += unmeasured(optimised(by_stage), by_stage, content.policies)
    content = replace(content, left_out=tuple(left_out))
    write_page(directory / REPORT, content)
    card = CardInput(
        directory.name,
        tuple(manifests),
        card_figures(content, manifests),
        STAGE_OF | people_stage(content) | {f"feedback.{name}": collected(by_stage) for name in OF_VOTES},
        content.findings,
        content.unsafe,
    )
    write_summary(directory / "card.json", audit_card(card))
    result = summary(
        content.policies,
        ppo_minus_sft={"gold": content.difference} if content.difference else {},
        optimised=content.difference_of,
        gate=_gate(content),
        manifests=manifests,
        report=REPORT,
        unsafe=content.unsafe,
        extra={
            **{"run": directory.name, "seed": settings["seed"], "verdict": content.verdict},
            **policy_of(by_stage, optimised(by_stage)),
            **({"left_out": left_out} if left_out else {}),
            **({"arenas": [plain(one) for one in content.arenas]} if content.arenas else {}),
            **_extra(directory, manifests),
        },
    )
    write_summary(directory / "summary.json", result)
    return {**result, "directory": str(directory)}


def _gate(content: ReportInput) -> list[Finding]:
    """What refuses a reward, as the river asks it before a policy; nothing where no gate was held."""
    held = any(finding.name.startswith(OWN) for finding in content.findings)
    return gate_checks(content.findings) if held else []


def report_input(directory: Path, title: str, unsafe: Sequence[str], manifests: Sequence[Manifest]) -> ReportInput:
    """What the page shows."""
    by_stage = {manifest.stage: manifest for manifest in manifests}
    evaluation = recorded_object(directory, EVALUATION, by_stage["evaluate"]) if "evaluate" in by_stage else {}
    policies = {
        name: {column: Estimate(**fields) for column, fields in evaluation["policies"][name].items()}
        for name in names_in_order(evaluation.get("policies", ()))
    }
    name = optimised(by_stage)
    arenas = shown_arenas(manifests, policies)
    for row in arenas:
        policies = with_people(policies, row)
    difference = evaluation.get(f"{name}_minus_sft", {}).get("gold")
    notes = [f"{manifest.stage}: {note}" for manifest in manifests for note in manifest.notes]
    return ReportInput(
        run_id=directory.name,
        title=title,
        manifests=tuple(manifests),
        policies=policies,
        difference=Estimate(**difference) if difference else None,
        difference_of=name,
        algorithm=algorithm_in_words(name, _metric(by_stage, newest_round(by_stage, name), "kl_coef")),
        verdict=_study_verdict(by_stage),
        unsafe=tuple(unsafe),
        findings=last_findings(by_stage),
        curves=tuple(curves(directory, by_stage, name)),
        calibration=tuple(
            Bin(**row) for row in _metric(by_stage, newest_round(by_stage, "reward"), "calibration") or ()
        ),
        frontier=frontier(evaluation),
        held_out=_held_out(by_stage),
        feedback=_feedback(by_stage),
        arenas=arenas,
        samples=tuple(_shown(row) for row in evaluation.get("shown", ())),
        **_inside(directory, by_stage),
        notes=tuple(notes),
        at_equal_kl=at_equal_kl(evaluation),
    )


def optimised(by_stage: Mapping[str, Manifest]) -> str:
    """The method whose policy the run ended with; the one that finished last, where several were tried."""
    found = [name for name in by_stage if name in ALGORITHMS]
    return max(found, key=lambda name: by_stage[name].finished_at) if found else "ppo"


def card_figures(content: ReportInput, manifests: Sequence[Manifest]) -> dict[str, Estimate | Fact]:
    """The fields of the audit card that this run can fill."""
    by_stage = {manifest.stage: manifest for manifest in manifests}
    name = content.difference_of
    policy = content.policies.get(name, {})
    figures: dict[str, Estimate | Fact] = {}
    if policy:
        figures["policy.algorithm"] = Fact(content.algorithm)
        last = by_stage.get(newest_round(by_stage, name))
        figures |= {} if last is None else {"policy.seeds": Fact(dict(last.seeds), "recorded")}
        weights = [ref.hash for ref in last.outputs if ref.kind == "model"] if last is not None else []
        figures |= {"identity.weights": Fact(weights[0], "recorded")} if weights else {}
    for column in ("kl", "proxy", "gold", "win_rate", "win_rate_people", "length", "distinct"):
        if column in policy:
            figures[f"policy.{column}"] = policy[column]
    if "agrees_wrong" in policy:
        figures["policy.sycophancy"] = policy["agrees_wrong"]
    feedback = content.feedback
    if feedback is not None:
        selection = "uniformly at random among pairs of the policy's samples"
        shares = chosen_shares(manifests)
        if shares:
            selection = (
                f"chosen with the reward model: {shares}; the rest {selection}; held-out figures from the rest alone"
            )
        figures |= {
            "people.n_raters": Fact(
                {who: n for who, _, n in feedback.by_origin} if len(feedback.by_origin) > 1 else feedback.n_raters,
                "counted",
            ),
            "feedback.n_judgements": Fact({"comparison": feedback.n_votes, **dict(feedback.answers)}, "counted"),
            "feedback.selection": Fact(selection if policy else "as imported", "recorded"),
        }
        counts = by_stage[collected(by_stage)].metrics
        if (missing := counts.get("all_rounds", counts).get("n_missing")) is not None:
            figures["feedback.n_missing"] = Fact(missing, "counted")
        if feedback.agreement and feedback.alpha:
            figures |= {"feedback.agreement": feedback.agreement, "feedback.alpha": feedback.alpha}
    for finding in content.findings:
        field = CARD_OF_FINDING.get(finding.name)
        if field is not None and finding.estimate is not None:
            figures[field] = finding.estimate
    edits = [f.estimate for f in content.findings if f.name.startswith("gate.edit_") and f.estimate is not None]
    if edits:
        figures["reward.robustness"] = max(edits, key=lambda estimate: estimate.value or 0.0)
    if "reward" in by_stage:
        figures["reward.likelihood"] = Fact("ordinal choice model with rater parameters (docs/reward.md)")
        figures["reward.disagreement"] = Fact("competence, side bias and lapse of each rater, integrated for new ones")
    return figures


def chosen_shares(manifests: Sequence[Manifest]) -> str:
    """By stage of collection the share of the votes that answer chosen questions, in words; "" = none was chosen."""
    shares = {
        manifest.stage: 1 - manifest.metrics["n_votes_random"] / manifest.metrics["n_votes"]
        for manifest in manifests
        if manifest.metrics.get("n_votes") and "n_votes_random" in manifest.metrics
    }
    return ", ".join(f"{share:.0%} of the votes of {stage}" for stage, share in shares.items() if share)


CARD_OF_FINDING = {
    "gate.accuracy": "reward.accuracy",
    "gate.calibration": "reward.ece",
    "gate.length_baseline": "reward.accuracy_length_baseline",
    "gate.shorter_won": "reward.accuracy_shorter_won",
    "gate.suffix": "reward.adversarial",
    "held_out.reward_model.accuracy": "reward.accuracy",
    "held_out.reward_model.vote_nll": "reward.nll",
    "held_out.reward_model.ece": "reward.ece",
    "held_out.reward_model.accuracy_shorter_won": "reward.accuracy_shorter_won",
    "held_out.length.accuracy": "reward.accuracy_length_baseline",
    "held_out.ngram.accuracy": "reward.accuracy_ngram_baseline",
    "people.worst_group": "pluralism.worst_group",
    "people.group_gap": "pluralism.majority_minority_gap",
    "people.jury_change": "pluralism.jury_change",
}


OF_VOTES = ("n_judgements", "selection", "agreement", "alpha")
STAGE_OF = {
    **{
        f"policy.{column}": "evaluate"
        for column in ("kl", "proxy", "gold", "win_rate", "length", "distinct", "sycophancy")
    },
    **dict.fromkeys(CARD_OF_FINDING.values(), "reward"),
}


def _inside(directory: Path, by_stage: Mapping[str, Manifest]) -> dict[str, Any]:
    """What was found inside the reward model, where somebody has looked."""
    if "inside" not in by_stage:
        return {}
    found = recorded_object(directory, "inside.json", by_stage["inside"])
    cells = tuple(
        AtlasCell(
            cell["x"], cell["y"], cell["n"], cell["reward"], cell["gold"], tuple(cell["texts"]), tuple(cell["words"]),
            tuple((name, share) for name, share in cell["source_fracs"]),
        )
        for cell in found["cells"]
    )  # fmt: skip
    attributed = tuple(
        AttributedText(one["prompt"], tuple(one["words"]), tuple(one["shares"]), one["score"], one["source"])
        for one in found["attributed"][:N_ATTRIBUTED]
    )
    return {"atlas": cells, "atlas_explained_frac": found["explained_frac"], "attributed": attributed}


N_ATTRIBUTED = 12


def _held_out(by_stage: Mapping[str, Manifest]) -> tuple[tuple[str, Estimate], ...]:
    """What the reward was asked beside its gate: the gate's own findings stand in their section."""
    if "reward" not in by_stage:
        return ()
    return tuple(
        (finding.question, finding.estimate)
        for finding in findings_of(by_stage[newest_round(by_stage, "reward")])
        if finding.estimate is not None and finding.name.startswith("held_out.")
    )


def _study_verdict(by_stage: Mapping[str, Manifest]) -> str:
    """What a run without a policy found, in one sentence; empty where there is a policy to speak of."""
    systems = _metric(by_stage, "reward", "systems")
    if not systems or "reward_model" not in systems:
        return ""
    accuracy, gain = (systems["reward_model"][name] for name in ("accuracy", "accuracy_minus_baseline"))
    return (
        f"On topics never trained on the reward names the published answer in {accuracy['value']:.3f} of the pairs; "
        f"against n-grams {gain['value']:+.3f} (95 % interval {gain['low']:+.3f} to {gain['high']:+.3f}, "
        f"{gain['n']} topics)."
    )


def _feedback(by_stage: Mapping[str, Manifest]) -> FeedbackSummary | None:
    if "collect" not in by_stage:
        return None
    stage = collected(by_stage)
    metrics = by_stage[stage].metrics.get("all_rounds", by_stage[stage].metrics)
    return FeedbackSummary(
        n_votes=metrics["n_votes"],
        n_raters=metrics["n_raters"],
        n_prompts=metrics["n_prompts"],
        origin=metrics["origin"],
        snapshot=metrics["root"],
        agreement=Estimate(**metrics["agreement"]),
        alpha=Estimate(**metrics["alpha"]),
        levels=tuple(metrics["levels"].items()),
        answers=tuple(metrics.get("n_answers", {}).items()),
        by_origin=tuple((who, n["votes"], n["raters"]) for who, n in metrics.get("by_origin", {}).items()),
        notes=() if stage == "collect" else (f"of all {round_of(stage)} rounds; the last reward is fitted to them",),
    )


def _shown(row: Mapping[str, Any]) -> SampleShown:
    return SampleShown(row["prompt"], tuple(ResponseShown(**response) for response in row["responses"]))


def _extra(directory: Path, manifests: Sequence[Manifest]) -> dict[str, Any]:
    by_stage = {manifest.stage: manifest for manifest in manifests}
    extra: dict[str, Any] = {}
    if "evaluate" in by_stage:
        extra["equal_kl"] = recorded_object(directory, EVALUATION, by_stage["evaluate"])["equal_kl"]
    if people := _metric(by_stage, newest_round(by_stage, "reward"), "people"):
        extra["people"] = people
    algorithm = optimised(by_stage)
    if algorithm in by_stage:
        metrics = by_stage[newest_round(by_stage, algorithm)].metrics
        extra["algorithm"] = algorithm
        # runs from before the watcher said its alarms have none in their manifests; their reports are written anew all the same
        told = ("kept_step", "stop_reason", "n_iterations", "alarms")
        extra["watcher"] = {name: metrics[name] for name in told if name in metrics}
    return extra


def _metric(by_stage: Mapping[str, Manifest], stage: str, name: str) -> Any:
    return by_stage[stage].metrics.get(name) if stage in by_stage else None
