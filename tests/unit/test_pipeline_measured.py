"""What an interrupted stage had measured before it began stands for the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from karat.errors import InputError
from karat.pipeline.measured import measured_once, scored_once
from karat.pipeline.stages import Clock, Workplace
from karat.progress import open_progress
from karat.records import user_prompt


def place(directory: Path, identity: str) -> Workplace:
    with open_progress() as progress:
        return Workplace(
            directory, directory / "checkpoints", directory / "m.jsonl", progress, Clock(directory), identity
        )


def test_a_figure_stands_as_it_was_measured_first(tmp_path):
    third = 1 / 3
    assert measured_once(place(tmp_path, "a"), "usual", lambda: [third, 2]) == [third, 2.0]
    # one process instead of two: another last bit
    assert measured_once(place(tmp_path, "a"), "usual", lambda: [third + 1e-15, 2]) == [third, 2.0]
    assert measured_once(place(tmp_path, "a"), "others", lambda: [5]) == [5.0]
    # other inputs or settings are another stage
    assert measured_once(place(tmp_path, "b"), "usual", lambda: [4]) == [4.0]


def test_scores_are_asked_for_once_and_only_sound_ones_are_kept(tmp_path):
    asked = []

    def score(_, texts):
        asked.append(len(texts))
        return [float(len(asked))] * (1 if len(asked) == 1 else len(texts))

    scores = scored_once(place(tmp_path, "a"), score)
    prompts, texts = [user_prompt("q")] * 2, ["x", "y"]
    with pytest.raises(InputError, match="found 1 scores for 2"):
        scores(prompts, texts)
    assert scores(prompts, texts) == [2.0, 2.0]
    assert scores(prompts, texts) == [2.0, 2.0]
    assert asked == [2, 2]
