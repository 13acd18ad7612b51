"""Calibration by group and kind as a run reports it: who is compared with whom, and when that is a warning."""

from types import SimpleNamespace

import numpy as np
import torch

from karat.pipeline.calibrating import calibration_slices, slice_findings, slice_rows
from karat.records import Annotator, Response, Vote, user_prompt
from karat.reward.calibration import VoteModel
from karat.reward.raters import RaterPriors

PROMPTS = [user_prompt(f"q{i}") for i in range(60)]
RESPONSES = [Response(prompt.id, text, "policy") for prompt in PROMPTS for text in ("x", "yy")]
TEXTS = ({p.id: p for p in PROMPTS}, {r.id: r for r in RESPONSES})
WORTH = dict(zip([r.id for r in RESPONSES], np.random.default_rng(0).normal(0, 3, 120).tolist(), strict=True))
FIT = SimpleNamespace(model=SimpleNamespace(objectives=("preference",)), params=None)


class Planted:
    """A scorer that knows what each response is worth, in logits of the raters called `sure`."""

    vote_model = VoteModel(RaterPriors(modelled=False), (0.0,))

    def logits(self, prompts, texts):
        ids = [Response(prompt.id, text, "policy").id for prompt, text in zip(prompts, texts, strict=True)]
        return torch.tensor([[WORTH[one] for one in ids]])


def votes(group_of, n=600):
    """Raters of the group `calm` choose as if every difference were a third of what it is."""
    rng, found = np.random.default_rng(1), []
    names = sorted(group_of)
    for number in range(n):
        who = names[int(rng.integers(len(names)))]
        a, b = RESPONSES[2 * (number % 60)], RESPONSES[2 * (number % 60) + 1]
        delta = (WORTH[a.id] - WORTH[b.id]) / (3 if group_of[who] == "calm" else 1)
        level = int(rng.random() < 1 / (1 + np.exp(-delta)))
        found.append(Vote(f"j{number}", a.prompt_id, a.id, b.id, level, 2, 0, who))
    return found


def slices(group_of):
    annotators = {name: Annotator(name, group=group) for name, group in group_of.items()}
    said = votes(group_of)
    return calibration_slices(Planted(), FIT, said, said, TEXTS, annotators)


def test_a_group_for_which_the_reward_is_too_sure_is_a_warning_and_the_other_is_not():
    found = slices({"a": "calm", "b": "calm", "c": "sure", "d": "sure"})
    assert set(found) == {"group", "kind"}
    by_name = {finding.name: finding for finding in slice_findings(found)}
    calm, sure = (by_name[f"reward.calibration.group.{name}"] for name in ("calm", "sure"))
    assert (calm.status, sure.status) == ("warn", "info")
    assert calm.estimate.low < 3 < calm.estimate.high
    assert sure.estimate.low < 1 < sure.estimate.high
    assert calm.estimate.n + sure.estimate.n == 600
    assert "at a temperature of its own" in calm.detail
    assert by_name["reward.calibration.kind.comparison/2"].estimate.n == 600
    assert slice_rows(found)["group"]["calm"]["temperature"] == calm.estimate.value


def test_raters_who_declared_no_group_are_not_compared_with_themselves():
    assert set(slices({"a": None, "b": None})) == {"kind"}
    mixed = slices({"a": None, "b": "sure"})
    assert set(mixed["group"]) == {"not declared", "sure"}
    assert calibration_slices(Planted(), FIT, [], [], TEXTS, {}) == {}


def test_too_few_judgements_are_counted_and_say_why():
    annotators = {"a": Annotator("a")}
    few = votes({"a": "sure"}, n=10)
    (finding,) = slice_findings(calibration_slices(Planted(), FIT, few, few, TEXTS, annotators))
    assert (finding.estimate.value, finding.estimate.n, finding.status) == (None, 10, "info")
    assert finding.estimate.method == "10 held-out judgements; a temperature of their own takes 40"
