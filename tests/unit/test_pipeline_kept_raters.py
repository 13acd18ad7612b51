"""A panel of raters kept for evaluation: nothing of theirs reaches a fit, and their votes say how good it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from karat.config import build
from karat.errors import ConfigError
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.pipeline.kept_raters import panel_findings, without_panel
from karat.pipeline.votes import VotesConfig
from karat.reading import Said
from karat.records import Response, Vote, user_prompt
from karat.reward.calibration import VoteModel
from karat.reward.raters import RaterPriors
from karat.reward.settings import RewardConfig
from karat.statements import Labelled, Marked, Part

PROMPTS = {p.id: p for p in (user_prompt(f"q{i}") for i in range(40))}
RESPONSES = {one.id: one for key in PROMPTS for one in (Response(key, "aa", "p", 0), Response(key, "bbbb", "p", 1))}
PAIRS = [[one for one in RESPONSES.values() if one.prompt_id == key] for key in PROMPTS]


def votes(n_raters=30, right=0.9, strategy="random", seed=0):
    """Each rater on eight prompts: the longer response wins so often, either side as a."""
    rng, found = np.random.default_rng(seed), []
    for r in range(n_raters):
        for i in rng.choice(len(PAIRS), 8, replace=False):
            pair = PAIRS[i] if rng.random() < 0.5 else PAIRS[i][::-1]
            longer = pair[0].text == "bbbb"
            level = 2 * int(longer == (rng.random() < right))
            found.append(Vote(f"j{r}-{i}", pair[0].prompt_id, pair[0].id, pair[1].id, level, 3, 1, f"r{r}", strategy))
    return found


def said(statements, marks=()):
    return Said(tuple(statements), tuple(marks), RESPONSES, {}, {})


def test_whole_raters_are_kept_by_hash_whoever_else_comes():
    few, many = votes(10), votes(30)
    kept, panel = without_panel(said(many), 0.3)
    outside = {one.annotator for one in panel}
    assert 4 <= len(outside) <= 14  # of 30, binomial
    assert {one.annotator for one in kept.statements} == {one.annotator for one in many} - outside
    assert len(kept.statements) + len(panel) == len(many)
    earlier = {one.annotator for one in without_panel(said(few), 0.3)[1]}
    assert earlier == outside & {one.annotator for one in few}
    assert without_panel(said(many), 0.0) == (said(many), [])


def test_everything_of_theirs_is_kept_and_only_random_votes_measure():
    own = [one for one in votes() if one.annotator == votes()[0].annotator]
    panel = {one.annotator for one in without_panel(said(votes()), 0.3)[1]}
    who = sorted(panel)[0]
    label = Labelled("l", own[0].prompt_id, (own[0].a,), True, who)
    marked = Marked("m", own[0].prompt_id, (own[0].a,), (Part(0, 1, 1, "step"),), ("step",), who, "step_marks")
    nameless = Labelled("n", own[0].prompt_id, (own[0].a,), True, UNKNOWN_ANNOTATOR)
    kept, found = without_panel(said([*votes(strategy="bald"), label, nameless], [marked]), 0.3)
    assert found == []
    assert label not in kept.statements
    assert kept.marks == ()
    assert nameless in kept.statements
    assert not panel & {one.annotator for one in kept.statements}


def longer(gain):
    def logits(prompts, texts):
        del prompts
        return torch.tensor([[gain * len(text) for text in texts]])

    return SimpleNamespace(vote_model=VoteModel(RaterPriors(), (-0.2, 0.2)), logits=logits)


def test_figures_tell_a_good_reward_from_one_that_has_it_backwards():
    panel = votes(right=0.9)
    new = {key for i, key in enumerate(PROMPTS) if i < 10}
    good = {
        one.name: one for one in panel_findings(longer(1.0), panel, new, (PROMPTS, RESPONSES), np.random.default_rng(0))
    }
    share = np.mean([(one.level == 2) == (RESPONSES[one.a].text == "bbbb") for one in panel])
    assert good["panel.accuracy"].estimate.value == pytest.approx(share)
    assert good["panel.accuracy"].estimate.n == 30  # raters
    assert good["panel.gain"].estimate.low > 0
    some = [one for one in panel if one.prompt_id in new]
    share = np.mean([(one.level == 2) == (RESPONSES[one.a].text == "bbbb") for one in some])
    assert good["panel.accuracy_new_prompts"].estimate.value == pytest.approx(share)
    wrong = {
        one.name: one
        for one in panel_findings(longer(-1.0), panel, new, (PROMPTS, RESPONSES), np.random.default_rng(0))
    }
    assert wrong["panel.accuracy"].estimate.high < 0.2
    assert wrong["panel.gain"].estimate.high < 0
    none = panel_findings(longer(1.0), [], new, (PROMPTS, RESPONSES), np.random.default_rng(0))
    assert {one.status for one in none} == {"not measured"}


def test_shares_that_cannot_be():
    with pytest.raises(ConfigError, match=r"reward\.panel_frac: found 0\.7; expected a share from 0 to 0\.5"):
        RewardConfig(panel_frac=0.7)
    with pytest.raises(ConfigError, match="whose folds keep whole topics"):
        build(VotesConfig, {"votes": {"path": "v.jsonl"}, "reward": {"panel_frac": 0.2}})
