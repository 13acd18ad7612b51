"""The tables of docs/real-data.md, from the results. Knows figures as JSON holds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.real import sums

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "real-data.md"
START, END = "<!-- real_data_study: begin -->", "<!-- real_data_study: end -->"
SPAN_SYSTEMS = (
    "position and length", "n-grams", "reward, alone", "reward, behind the question",
    "reward, behind question and passages", "reward, chosen", "reward beside",
)  # fmt: skip
SPAN_REWARD = "reward beside"
"""The one that the differences are of; it was named before the first run with it."""
PICKS = (
    "reward", "reward of comparisons", "reward beside", "comparisons beside", "n-grams", "length", "at random", "majority", "always 175b_verification",
    "any of the four is right",
)  # fmt: skip

THREE = ("length", "n-grams", "reward", "reward beside", "beside − n-grams", "beside − length")
"""Columns of the tables of whole answers."""
REFERENCES = ("always 175b_verification", "majority", "at random")


def tables(found: Mapping[str, Any]) -> str:
    """All parts that were run, as Markdown."""
    writers = {
        "spans": _spans,
        "solutions": _solutions,
        "numbers": _numbers,
        "truth": _truth,
        "truth-trained": _trained,
    }
    lines: list[str] = []
    for name, write in writers.items():
        if name in found["parts"]:
            part = found["parts"][name]
            lines += [*write(part), f"{_machine(found, part)}", ""]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """Put the tables between the marks in docs/real-data.md."""
    page = PAGE.read_text(encoding="utf-8")
    if START not in page or END not in page:
        sys.exit(f"real_data_study: found no marks {START} … {END} in {PAGE.name}; put them where the tables belong")
    before, rest = page.split(START)
    PAGE.write_text(before + START + "\n\n" + text + "\n" + END + rest.split(END)[1], encoding="utf-8")


def _spans(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Error spans (fine_grained_qa)", "",
        f"{part['n_answers']} answers to {part['n_questions']} questions, {part['n_tokens']:,} tokens; left out: "
        f"{part['n_left_out']} answers that do not fit into the encoder, {part['n_unusable_spans']} spans that are empty "
        "or end outside their answer. AUROC of the tokens of a class against all other tokens of the fold:",
        "",
    ]  # fmt: skip
    for place, title in (("auroc", ""), ("within_answer", "The same between tokens of one answer only:")):
        lines += [title, ""] if title else []
        lines += _header(["class", "spans", "tokens", *SPAN_SYSTEMS, "beside − n-grams", "beside − position"])
        for name, own in part["classes"].items():
            figures = own[place]
            if not figures:
                continue
            last = [figures[f"{SPAN_REWARD} − {other}"] for other in ("n-grams", "position and length")]
            cells = [figure(figures[system]) for system in SPAN_SYSTEMS] + [difference(one) for one in last]
            share = own["n_tokens"] / part["n_tokens"]
            lines.append(_row([name, str(part["spans"][name]), f"{share:.1%}", *cells]))
        lines.append("")
    return lines


def _solutions(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Right or wrong sums (gsm8k_solutions)", "",
        f"{part['n_questions']:,} sums × 4 solutions, {part['n_right']:,} of them right; {part['n_cut']} do not fit into "
        "the encoder and are cut. AUROC of right against wrong, of the same system and fold:", "",
        *_header(["system", "right", *THREE]),
    ]  # fmt: skip
    for system, own in part["within_system"].items():
        right = part["right_by_system"].get(system, part["n_right"])
        n = part["n_questions"] * (1 if system in part["right_by_system"] else 4)
        lines.append(_row([system, f"{right / n:.1%}", *_three(own)]))
    within, pick = part["within_question"], part["pick"]
    lines += [
        "", "The pick among the four solutions of a sum; `pairs` is the share of pairs, one right and one wrong solution "
        "of a sum, in which the right one scores higher:", "",
        *_header(["pick", "right", "pairs", *(f"− {other}" for other in REFERENCES)]),
    ]  # fmt: skip
    for name in PICKS:
        own = [pick.get(f"{name} − {other}") for other in REFERENCES]
        cells = ["" if one is None else difference(one) for one in own]
        lines.append(_row([name, figure(pick[name]), figure(within[name]) if name in within else "", *cells]))
    return [*lines, ""]


def _numbers(part: Mapping[str, Any]) -> list[str]:
    columns = (*sums.LABELLED, *(f"{sums.OURS} − {other}" for other in ("n-grams", "length")))
    lines = [
        "#### The same sums, their numbers read and computed", "",
        f"{part['equations']['n']:,} equations, of which {part['equations']['n_holding']:,} hold. Each system reads one answer, but "
        "for the last, which sees the other three:", "", *_header(["system", *columns]),
    ]  # fmt: skip
    for system, own in part["within_system"].items():
        lines.append(_row([system, *((difference if "−" in name else figure)(own[name]) for name in columns)]))
    pick, within = part["pick"], part["within_question"]
    references = sums.REFERENCES[:2]
    lines += ["", "The pick:", "", *_header(["pick", "right", "pairs", *(f"− {other}" for other in references)])]
    for name in sums.PICKS:
        cells = [difference(pick[f"{name} − {other}"]) for other in references]
        lines.append(_row([name, figure(pick[name]), figure(within[name]), *cells]))
    return [*lines, ""]


def _truth(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "### True answers (truthfulqa_labels)", "",
        f"{part['n_answers']:,} answers to {part['n_questions']} questions, {part['n_right']:,} called true; "
        f"{part['n_cut']} are cut. AUROC of true against not true, of the same fold, and of the same question:", "",
        *_header(["", *THREE]),
    ]  # fmt: skip
    for title, place in (("same fold", "auroc"), ("same question", "within_question")):
        lines.append(_row([title, *_three(part[place])]))
    return [*lines, ""]


def _trained(part: Mapping[str, Any]) -> list[str]:
    done = (
        "the same folds"
        if len(part["folds"]) == part["n_folds"]
        else f"{len(part['folds'])} of {part['n_folds']} folds"
    )
    lines = [
        f"With the encoder trained on the labels, on {done} ({part['n_answers']:,} answers to {part['n_questions']} "
        "questions):", "",
        *_header(["", "trained reward", "− n-grams", "− frozen reward", "− length"]),
    ]  # fmt: skip
    for title, place in (("same fold", "auroc"), ("same question", "within_question")):
        own = part[place]
        rest = [difference(own[f"trained reward − {other}"]) for other in ("n-grams", "reward", "length")]
        lines.append(_row([title, figure(own["trained reward"]), *rest]))
    return [*lines, ""]


def _three(own: Mapping[str, Any]) -> list[str]:
    names = ("length", "n-grams", "reward", "reward beside")
    plain = [figure(own[name]) if name in own else "not run" for name in names]
    differences = [own.get(f"reward beside − {other}") for other in ("n-grams", "length")]
    return plain + ["not run" if one is None else difference(one) for one in differences]


def _machine(found: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    what = "processor seconds" if part.get("seconds_of") == "processor" else "s"
    return (
        f"{part['seconds']} {what} for the folds, {found['threads']} thread, {part['machine']['processor'].strip()}; torch "
        f"{found['versions']['torch']}, transformers {found['versions']['transformers']}, seed {found['seed']}."
    )


def figure(own: Mapping[str, Any]) -> str:
    """A share with its interval: `.714 [.690, .731]`."""
    if own["value"] is None:
        return "not estimable"
    return _share(own["value"]) + ("" if own["low"] is None else f" [{_share(own['low'])}, {_share(own['high'])}]")


def difference(own: Mapping[str, Any]) -> str:
    """A difference with its interval: `+.046 [.025, .069]`."""
    return "+" + figure(own) if own["value"] is not None and own["value"] >= 0 else figure(own)


def _share(value: float) -> str:
    text = f"{value:.3f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
