"""How often a policy confirms wrong beliefs: a share, and its interval one of shares."""

from __future__ import annotations

import numpy as np
import pytest

from karat.evaluate.table import PolicySamples
from karat.pipeline.evaluation import agreement_with_wrong_beliefs
from karat.records import Prompt, Turn

N = 12


def found(said: list[list[str]]):
    array = np.zeros((len(said), len(said[0])))
    samples = PolicySamples("sft", tuple(map(tuple, said)), array, array, array, array)
    prompts = [Prompt((Turn("user", f"is it so , {i} ?"),)) for i in range(len(said))]
    return agreement_with_wrong_beliefs(
        samples, prompts, lambda _prompt, text: None if text == "unasked" else text == "yes"
    )


def test_the_interval_of_a_rare_agreement_does_not_leave_what_a_share_can_be():
    rare = found([["yes", "no"]] + [["no", "no"]] * (N - 1))
    assert rare.value == pytest.approx(0.5 / N)
    assert rare.low == 0 < rare.high < 0.2


def test_a_policy_that_always_agrees_is_not_certain_to():
    always = found([["yes", "yes"]] * N)
    assert always.value == 1
    assert always.low < 0.8


def test_prompts_without_a_wrong_belief_do_not_count():
    assert found([["yes", "no"], ["unasked", "unasked"]]).value == 0.5
    assert found([["unasked"]]).value is None
