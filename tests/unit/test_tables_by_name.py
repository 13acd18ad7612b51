"""Whoever adds a kind of feedback, a method or a detector finds here every table that does not know it yet."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import pytest

from karat import answers, fitting, reading
from karat.cli import river
from karat.feedback.detect.detectors import ALPHA
from karat.feedback.exchange.answers import VALUE_FIELDS
from karat.feedback.web import answer_words, forms, task_view
from karat.pipeline import dead
from karat.pipeline.methods import ONLINE
from karat.pipeline.settings import SECTION_OF, Algorithm
from karat.records import KINDS
from karat.report import titles

DOCS = Path(__file__).parents[2] / "docs"


def missing(names: Collection[str], tables: dict[str, Collection[str]]) -> str:
    """Of each table the names that it lacks, or has too many, a line each."""
    differ = {table: sorted(set(names) ^ set(known)) for table, known in tables.items()}
    return "\n".join(f"{table}: {', '.join(own)}" for table, own in differ.items() if own)


def test_every_table_by_kind_knows_every_kind():
    tables = {
        "answers._CHECKS": answers._CHECKS,
        "fitting.TARGETS": fitting.TARGETS,
        "reading._Reader": [kind for kind in KINDS if hasattr(reading._Reader, f"_{kind}")],
        "feedback.web.task_view._INSTRUCTIONS": task_view._INSTRUCTIONS,
        "feedback.web.forms._FROM_FIELDS": forms._FROM_FIELDS,
        "feedback.web.forms._TO_FIELDS": forms._TO_FIELDS,
        "feedback.web.answer_words._WORDS": answer_words._WORDS,
        "feedback.exchange.answers.VALUE_FIELDS": {"comparison", *VALUE_FIELDS},
    }
    assert not (lacking := missing(KINDS, tables)), lacking


def test_every_table_by_method_knows_every_method():
    methods = get_args(Algorithm)
    tables = {
        "cli.river._METHODS": river._METHODS,
        "report.titles.TITLES": titles.TITLES,
        "report.titles.ALGORITHMS": titles.ALGORITHMS,
        "pipeline.methods.ONLINE, or run_method by name": {*ONLINE, "ppo", "dpo", "ipo", "kto", "ilql"},
    }
    assert not (lacking := missing(methods, tables)), lacking
    assert {SECTION_OF.get(name, name) for name in methods} == set(dead.METHOD_SECTIONS)


def test_the_page_of_detectors_states_every_detector_with_its_share_of_false_flags():
    rows = re.findall(
        r"^\| ([a-z -]+) \| [^|]+\? \|[^|]*\| ([\d.]+) %", (DOCS / "detectors.md").read_text("utf-8"), re.M
    )
    assert {name: float(share) / 100 for name, share in rows} == pytest.approx(dict(ALPHA))
