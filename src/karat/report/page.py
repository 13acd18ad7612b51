"""One self-contained HTML page of a run: opens from a file, offline, for ever.

Knows records, manifests, Findings and series; computes no result. Whatever came from a person, a model or a file is
escaped by the template; figures are JSON that the page's own script draws with the plotly.js inside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from karat.ledger.artifacts import write_text
from karat.ledger.lineage import Manifest, short
from karat.progress import duration
from karat.records import Estimate, Finding
from karat.report.card import challenge_rows
from karat.report.figures import AtlasCell, Bin, Panel, Series, atlas_figure, calibration_figure, panels_figure
from karat.report.titles import COLUMNS, policy_meanings, policy_title

__all__ = [
    "ArenaShown",
    "AtlasCell",
    "AttributedText",
    "Bin",
    "Curve",
    "FeedbackSummary",
    "Panel",
    "ReportInput",
    "ResponseShown",
    "SampleShown",
    "Series",
    "render_page",
    "verdict",
    "write_page",
]


@dataclass(frozen=True)
class Curve:
    """What a stage measured while it ran."""

    title: str
    """`PPO`, `reward model`."""
    x_title: str
    """What was counted: rollouts, optimiser steps."""
    panels: tuple[Panel, ...]
    """Drawn one above the other."""
    caption: str = ""
    """What to look for."""
    kept_at: float | None = None
    """Where along the horizontal axis the kept policy stands; None = at its end."""


@dataclass(frozen=True)
class ArenaShown:
    """What people said of two policies, blind."""

    stage: str
    """Of the manifest: what it is traced by."""
    policies: tuple[str, str]
    """Who was compared; all figures are of the first."""
    win_rate: Estimate
    """A tie ½, both positions alike, for other prompts and other raters."""
    shown_first: Estimate
    """How often what was shown first was preferred: ½ where the side does not matter."""
    measured: Estimate | None
    """The win rate of the same two by gold or the learned score, on the evaluation's prompts; None = not measured."""
    votes: tuple[int, int, int, int]
    """Won, ties, lost, without a verdict."""
    raters: tuple[tuple[str, int], ...]
    """(origin, how many raters)."""
    root: str
    """Root hash of the snapshot of the votes."""


@dataclass(frozen=True)
class FeedbackSummary:
    """The votes behind it all."""

    n_votes: int
    """Judgements in the snapshot."""
    n_raters: int
    """Raters who gave them."""
    n_prompts: int
    """Prompts they are about."""
    origin: str
    """simulated, imported, person …"""
    snapshot: str
    """Root hash of the snapshot."""
    agreement: Estimate | None = None
    """Pairwise agreement of raters."""
    alpha: Estimate | None = None
    """Krippendorff's alpha."""
    levels: tuple[tuple[str, int], ...] = ()
    """(answer, how often), in the order of the scale, missing ones last."""
    by_origin: tuple[tuple[str, int, int], ...] = ()
    """(origin, votes, raters), for each kind of raters."""
    notes: tuple[str, ...] = ()
    """What else a reader should know."""
    answers: tuple[tuple[str, int], ...] = ()
    """(kind, how many answers) beside comparisons."""


@dataclass(frozen=True)
class ResponseShown:
    """One policy's answer to a prompt."""

    policy: str
    """Who wrote it."""
    text: str
    """What it wrote."""
    gold: float | None = None
    """Its gold reward, where one is known."""
    proxy: float | None = None
    """Its learned score."""


@dataclass(frozen=True)
class SampleShown:
    """A prompt and what the policies made of it."""

    prompt: str
    """The prompt."""
    responses: tuple[ResponseShown, ...]
    """In the order of the headline table."""


@dataclass(frozen=True)
class AttributedText:
    """A response with what each of its words adds to the score."""

    prompt: str
    """What it answers."""
    words: tuple[str, ...]
    """Its words."""
    shares: tuple[float, ...]
    """What each adds, logits."""
    score: float
    """Its score, logits."""
    source: str
    """Who wrote it."""

    @property
    def coloured(self) -> list[tuple[str, float, float]]:
        """(word, share, strength of its colour in [0, 1])."""
        largest = max((abs(share) for share in self.shares), default=0.0) or 1.0
        return [(word, share, abs(share) / largest) for word, share in zip(self.words, self.shares, strict=True)]


@dataclass(frozen=True)
class ReportInput:
    """Everything the page shows; what is not given is said to be not measured."""

    run_id: str
    """Name of the run."""
    title: str
    """What was done, in one line."""
    manifests: tuple[Manifest, ...] = ()
    """All manifests of the run, in order."""
    policies: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """policy → column (gold, proxy, kl, win_rate, length, distinct, …) → Estimate, in the order of the table."""
    baseline: str = "sft"
    """The policy that the others are compared with."""
    difference: Estimate | None = None
    """Paired difference of gold, final policy minus baseline."""
    difference_of: str = "ppo"
    """The policy that `difference` is about."""
    algorithm: str = ""
    """How that policy was trained, in words; "" = not known."""
    verdict: str = ""
    """One sentence at the top; empty = worded from `difference`."""
    unsafe: tuple[str, ...] = ()
    """Unsafe options that were set, in words; shown before everything else."""
    findings: tuple[Finding, ...] = ()
    """Gate (`gate.…`), challenges (`challenge.D1…`), watcher and others."""
    curves: tuple[Curve, ...] = ()
    """Training curves."""
    calibration: tuple[Bin, ...] = ()
    """Calibration of the reward model on held-out votes."""
    frontier: tuple[Panel, ...] = ()
    """Gold (and proxy) against KL: positions are KLs in nats, drawn at their square roots."""
    at_equal_kl: tuple[str, ...] = ()
    """What was bought at one and the same distance from the reference, a sentence each."""
    held_out: tuple[tuple[str, Estimate], ...] = ()
    """Held-out figures of the reward model and its baselines."""
    feedback: FeedbackSummary | None = None
    """The votes."""
    arenas: tuple[ArenaShown, ...] = ()
    """What people said of policies, blind."""
    samples: tuple[SampleShown, ...] = ()
    """Prompts with responses."""
    atlas: tuple[AtlasCell, ...] = ()
    """Cells of the activation atlas."""
    atlas_explained_frac: float | None = None
    """Share of the features' variance that the atlas shows."""
    attributed: tuple[AttributedText, ...] = ()
    """Responses word by word."""
    notes: tuple[str, ...] = ()
    """Remarks shown at the end."""
    left_out: tuple[str, ...] = ()
    """What is not shown because it was measured on something else, shown at the top."""


HYPHEN = re.compile(r"(?<![\w.,-])-(?=\d)")
"""The sign of a negative number where a sentence was made with a hyphen; not that of 1e-06 or of a name."""


def render_page(content: ReportInput) -> str:
    """The page as one HTML text without any reference to another file or address."""
    environment = Environment(
        loader=PackageLoader("karat.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": format_estimate, "number": _number, "duration": duration, "short": short, "policy": policy_title,
        "minus": lambda text: HYPHEN.sub("−", text),
    }  # fmt: skip
    figures = _figures(content)
    return environment.get_template("report.html").render(
        page=content,
        verdict=content.verdict or verdict(content),
        columns=_columns(content.policies),
        column_names=COLUMNS,
        policy_names=policy_meanings(content.policies, content.baseline)
        | ({content.difference_of: content.algorithm} if content.algorithm else {}),
        tracks=_tracks(content.policies),
        gate=[finding for finding in content.findings if finding.name.startswith("gate.")],
        other=[f for f in content.findings if not f.name.startswith(("gate.", "challenge.", "held_out.", "inside."))],
        inside=[finding for finding in content.findings if finding.name.startswith("inside.")],
        rests_on={f.question: f.detail for f in content.findings if f.name.startswith("held_out.")},
        challenges=challenge_rows(content.findings),
        figures=figures,
        figures_json=_script_json({name: figure["figure"] for name, figure in figures.items()}),
        plotly=Markup(_plotly()) if figures else "",
        total_s=sum(manifest.seconds for manifest in content.manifests),
        longest_s=max((manifest.seconds for manifest in content.manifests), default=0.0),
        now=_moment(max((manifest.finished_at for manifest in content.manifests), default="")),
    )


def write_page(path: Path, content: ReportInput) -> None:
    """Write the page atomically."""
    write_text(path, render_page(content))


def verdict(content: ReportInput) -> str:
    """What the difference between the final policy and the baseline says, in one sentence."""
    difference = content.difference
    if difference is None or difference.value is None or difference.low is None or difference.high is None:
        failed = any(one.name.startswith("gate.") and one.status == "fail" for one in content.findings)
        if failed and content.difference_of not in {manifest.stage for manifest in content.manifests}:
            return "The reward did not pass its gate, and no policy was optimised on it."
        return "Whether the policy became better has not been measured."
    policy, baseline = policy_title(content.difference_of), policy_title(content.baseline)
    digits = _digits(difference.high - difference.low)
    value, low, high = (signed(one, digits) for one in (difference.value, difference.low, difference.high))
    interval = f"95 % interval {low} to {high}, {difference.n} prompts"
    if difference.low > 0:
        return f"{policy} is better than {baseline}: gold reward {value} ({interval})."
    if difference.high < 0:
        return f"{policy} is worse than {baseline}: gold reward {value} ({interval})."
    return f"No difference between {policy} and {baseline} was shown: gold reward {value} ({interval})."


def format_estimate(estimate: Estimate | None) -> tuple[str, str]:
    """(value, interval) as text, with the digits that the interval supports.

    >>> format_estimate(Estimate(0.4123, 0.35, 0.47, 200, ""))
    ('0.41', '0.35 to 0.47')
    """
    if estimate is None or estimate.value is None:
        return "–", "not measured" if estimate is None else estimate.method
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}".replace("-", "−"), "no interval"
    digits = _digits(estimate.high - estimate.low)
    return _fixed(estimate.value, digits), f"{_end(estimate.low, digits)} to {_end(estimate.high, digits)}"


def signed(value: float, digits: int) -> str:
    """A difference with its sign and that many decimals."""
    return f"{value:+,.{digits}f}".replace("-", "−")


def _end(value: float, digits: int) -> str:
    """An end of an interval; one beside 0 is not shown as 0, or the interval would seem to hold it."""
    shown = _fixed(value, digits)
    return f"{value:.1g}".replace("-", "−") if value and not any(one in "123456789" for one in shown) else shown


def _digits(width: float) -> int:
    return 3 if width <= 0 else min(max(1 - math.floor(math.log10(width)), 0), 4)


def _fixed(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _columns(policies: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    present = dict.fromkeys(name for columns in policies.values() for name in columns)
    return [name for name in COLUMNS if name in present] + [name for name in present if name not in COLUMNS]


def _moment(at: str) -> str:
    """`2026-01-02T03:04:05.678+00:00` as `2026-01-02 03:04 UTC`; what is no such time stays as it is."""
    return f"{at[:10]} {at[11:16]} UTC" if at[10:11] == "T" and at.endswith("+00:00") else at


def _tracks(policies: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """column → policy → (left, width, dot) in per cent of the column's range, for the little interval bars."""
    tracks: dict[str, dict[str, tuple[float, float, float]]] = {}
    for column in _columns(policies):
        rows = {
            name: (e.value, e.low, e.high)
            for name, columns in policies.items()
            if (e := columns.get(column)) and e.value is not None and e.low is not None and e.high is not None
        }
        if not rows:
            continue
        start = min(low for _, low, _ in rows.values())
        span = max(high for _, _, high in rows.values()) - start or 1.0
        tracks[column] = {
            name: (100 * (low - start) / span, max(100 * (high - low) / span, 1.5), 100 * (value - start) / span)
            for name, (value, low, high) in rows.items()
        }
    return tracks


def _figures(content: ReportInput) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for i, curve in enumerate(content.curves):
        figures[f"curve-{i}"] = {
            "title": curve.title,
            "caption": curve.caption,
            "figure": panels_figure(curve.panels, x_title=curve.x_title, marked=curve.kept_at),
        }
    if content.calibration:
        figures["calibration"] = {
            "title": "Calibration of the reward model",
            "caption": "Held-out votes. On the dotted line a vote predicted with 70 % goes that way 70 % of the time; "
            "larger points stand for more votes, bars are 95 % intervals.",
            "figure": calibration_figure(content.calibration),
        }
    if content.atlas:
        share = content.atlas_explained_frac
        figures["atlas"] = {
            "title": "Activation atlas of the reward model",
            "caption": "Each point is a cell of responses with similar features; larger points hold more. Point at one for its "
            "responses. Red = rewarded beyond what is right, where gold is known."
            + (f" The two components hold {share:.0%} of the features' variance." if share is not None else ""),
            "figure": atlas_figure(content.atlas),
        }
    if content.frontier:
        figures["frontier"] = {
            "title": "What the distance bought",
            "caption": "Each point lies at the square root of its KL to the reference policy. Lines go through the looks "
            "that were taken along training, on validation prompts, in their order; single points are of the evaluation, with a "
            "95 % interval where a bar is drawn. Where the learned score rises and gold falls, the reward is being exploited.",
            "figure": panels_figure(content.frontier, x_title="√KL (√nats per response)", square_root=True),
        }
    return figures


def _script_json(value: Any) -> Markup:
    # Inside <script> only `<` could end the element or open a comment; the two separators end a line in old engines.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # 5 MB of text: read only when a page with figures is written

    return get_plotlyjs()
