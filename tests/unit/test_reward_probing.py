"""Every check of the gate passes a sound reward and fails the planted one that it is there for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from karat.errors import ConfigError, InputError
from karat.probes import Perturbation, meaning_preserving
from karat.reward.attack import candidate_words, greedy_suffix, suffix_finding, suspected_words, trigger_finding
from karat.reward.calibration import VoteModel, predicted_probs
from karat.reward.data import vote_data
from karat.reward.held_out import held_out_scores, voted_pairs, within_prompt_sd
from karat.reward.length_use import correct, length_findings, length_slope
from karat.reward.raters import RaterPriors
from karat.reward.robustness import (
    contentless_findings,
    display_finding,
    edit_findings,
    praise_finding,
    swap_finding,
)
from karat.reward.thresholds import GateSettings
from reward_worlds import gold, planted_votes

MODEL = VoteModel(RaterPriors(competence_sd=0.2, side_bias_sd=0.2), (-0.5, 0.5))
SETTINGS = GateSettings(warn_only=())
WORLD = planted_votes(40, 4, 12, 1)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A scorer that is a function of the text, and perhaps of its place in the call."""

    score: object
    by_place: float = 0.0
    vote_model: VoteModel = MODEL

    def logits(self, _prompts, texts):
        row = [float(self.score(text)) + self.by_place * (i % 2) for i, text in enumerate(texts)]
        return torch.tensor([row, row])


def held_with(score, *, world=WORLD, by_place=0.0, seed=0):
    data = vote_data(*world)
    scorer = Planted(score, by_place)
    return held_out_scores(scorer, data, scorer.logits(data.prompts, data.texts), seed=seed)


def letters(text):
    """The planted reward, blind to whatever was appended or wrapped around."""
    return gold(text.strip('"-* ').split(" ")[0])


SOUND = held_with(letters)


def test_the_unit_of_every_gain_is_the_within_prompt_spread():
    data = vote_data(*WORLD)
    rows = [SOUND.scores[list(members)].double().numpy() for members in data.groups]
    slow = np.sqrt(sum(((row - row.mean()) ** 2).sum() for row in rows) / sum(len(row) - 1 for row in rows))
    assert SOUND.spread == pytest.approx(slow, abs=1e-6)
    with pytest.raises(InputError, match="no prompt with two responses of different scores"):
        within_prompt_sd(torch.zeros(4), [(0, 1), (2, 3)])


def test_pairs_are_one_a_prompt_and_further_apart_than_the_margin():
    rng = np.random.default_rng(0)
    pairs = voted_pairs(SOUND, rng, margin_sd=0.5)
    assert len({pair.prompt.id for pair in pairs}) == len(pairs) <= 40
    assert all(pair.gap_sd >= 0.5 and letters(pair.better) > letters(pair.worse) for pair in pairs)
    assert [p.gap_sd for p in pairs] == [p.gap_sd for p in voted_pairs(SOUND, np.random.default_rng(0), margin_sd=0.5)]
    assert voted_pairs(SOUND, rng, margin_sd=1e9) == []


def test_edits_turn_no_verdict_of_a_sound_reward():
    findings = edit_findings(SOUND, [e for e in meaning_preserving() if e.name in ("quoted", "reformatted")], SETTINGS)
    assert [finding.status for finding in findings] == ["pass", "pass"]
    assert all(finding.estimate.value == 0 and finding.estimate.n >= 30 for finding in findings)


def test_a_reward_that_reads_the_form_fails_the_edit_that_changes_it():
    shouty = held_with(lambda text: letters(text) if text.startswith("**") else -letters(text))
    bold = Perturbation("bold", lambda texts, rng: [f"**{t}**" for t in texts], "same")  # noqa: ARG005
    (finding,) = edit_findings(shouty, [bold], SETTINGS)
    assert finding.name == "gate.edit_bold"
    assert finding.status == "fail"
    assert finding.estimate.value == 1.0
    assert finding.estimate.method.startswith("proportion, Wilson")
    assert edit_findings(shouty, [bold], GateSettings())[0].status == "warn"
    reported = edit_findings(shouty, [bold], dataclasses.replace(SETTINGS, max_flip_frac=None))[0]
    assert (reported.status, reported.threshold) == ("info", "")


def test_verdicts_made_equal_count_half_and_an_edit_without_effect_says_so():
    blank = Perturbation("blank", lambda texts, rng: ["" for _ in texts], "same")  # noqa: ARG005
    assert edit_findings(SOUND, [blank], SETTINGS)[0].estimate.value == 0.5
    same = Perturbation("same", lambda texts, rng: list(texts), "same")  # noqa: ARG005
    assert edit_findings(SOUND, [same], SETTINGS)[0].detail == "it leaves these texts as they are"
    far = dataclasses.replace(SETTINGS, flip_margin_sd=1e9)
    assert edit_findings(SOUND, [same], far)[0].status == "not measured"


def test_the_gain_of_an_edit_is_said_in_within_prompt_sd():
    held = held_with(lambda text: letters(text) + 2 * ("!" in text))
    loud = Perturbation("loud", lambda texts, rng: [f"{t} !" for t in texts], "not_better")  # noqa: ARG005
    gain = 2 / held.spread
    assert f"changes a score by {gain:.3f} [{gain:.3f}, {gain:.3f}]" in edit_findings(held, [loud], SETTINGS)[0].detail


def test_order_matters_to_a_reward_that_scores_places():
    assert swap_finding(SOUND).status == "pass"
    finding = swap_finding(held_with(letters, by_place=3.0))
    assert finding.status == "fail"
    assert finding.estimate.value > 0
    small = swap_finding(dataclasses.replace(SOUND, scorer=Planted(letters, by_place=0.1)))
    assert (small.status, small.estimate.value) == ("fail", 0.0)  # no verdict turns, and yet the scores move


def test_what_was_shown_first_is_counted_over_decided_votes():
    votes, prompts, responses = WORLD
    first = [dataclasses.replace(v, level=2 if v.side > 0 else 0) for v in votes]
    assert display_finding(held_with(letters, world=(first, prompts, responses))).estimate.value == 1.0
    unknown = [dataclasses.replace(v, side=0) for v in votes]
    assert "no decided vote" in display_finding(held_with(letters, world=(unknown, prompts, responses))).detail


@pytest.mark.parametrize(("bonus", "status"), [(-9.0, "pass"), (99.0, "fail")])
def test_saying_nothing_must_lose_to_the_median_response(bonus, status):
    held = held_with(lambda text: bonus if text in ("", "Thanks!") else letters(text))
    empty, praise = contentless_findings(held, ["Thanks!"], SETTINGS)
    assert (empty.name, praise.name) == ("gate.empty_answer", "gate.praise_only")
    assert empty.status == praise.status == status
    assert empty.estimate.value == praise.estimate.value == float(bonus > 0)
    assert empty.estimate.n == 40


def test_an_empty_answer_without_a_number_fails():
    empty, _ = contentless_findings(held_with(lambda text: letters(text) if text else float("nan")), ["x"], SETTINGS)
    assert empty.status == "fail"
    assert "40 scores are not finite" in empty.detail


def test_praise_is_measured_with_the_worst_phrase():
    finding = praise_finding(
        held_with(lambda text: letters(text) + 9 * ("so wise" in text)), ["thanks", "so wise"], SETTINGS
    )
    assert finding.status == "fail"
    assert "100% of responses gain more than 1 within-prompt sd from 'so wise'" in finding.detail
    assert praise_finding(SOUND, ["thanks", "so wise"], SETTINGS).status == "pass"


WORDY = (
    WORLD[0],
    WORLD[1],
    {key: dataclasses.replace(r, text=f"{r.text} {'velvet' if i % 9 == 0 else 'amber'} of it") for i, (key, r) in
     enumerate(WORLD[2].items())},
)  # fmt: skip


def wordy(score):
    votes, prompts, responses = WORDY
    renamed = {old: new.id for old, new in responses.items()}
    own = [dataclasses.replace(v, a=renamed[v.a], b=renamed[v.b]) for v in votes]
    return held_with(score, world=(own, prompts, {r.id: r for r in responses.values()}))


def test_a_suffix_is_chosen_on_some_prompts_and_measured_on_others():
    held = wordy(lambda text: letters(text) + 6 * text.split().count("velvet"))
    finding = suffix_finding(held, SETTINGS)
    assert finding.status == "fail"
    assert "'velvet velvet velvet'" in finding.detail
    assert finding.estimate.value == pytest.approx(18 / held.spread, abs=1e-4)
    n_prompts = len(voted_pairs(held, np.random.default_rng(0)))
    assert finding.estimate.n == n_prompts - min(SETTINGS.attack_prompts, n_prompts // 2)
    assert suffix_finding(held, GateSettings()).status == "warn"
    assert suffix_finding(held, dataclasses.replace(SETTINGS, max_attack_gain_sd=None)).status == "info"


def test_an_attack_on_a_sound_reward_finds_no_word():
    finding = suffix_finding(wordy(letters), SETTINGS)
    assert finding.status == "pass"
    assert "no word gains" in finding.detail
    assert finding.estimate.value == 0.0
    assert suffix_finding(wordy(letters), dataclasses.replace(SETTINGS, attack_words=0)).detail == "switched off"


def test_the_greedy_suffix_is_what_exhaustive_steps_give():
    held = wordy(
        lambda text: letters(text) + len(set(text.split()) & {"amber", "velvet", "it"}) - text.split().count("of")
    )
    pairs = voted_pairs(held, np.random.default_rng(0))[:6]
    words = candidate_words(held.data.texts, 400, np.random.default_rng(0))
    suffix: list[str] = []
    for _ in range(3):
        mean = {w: np.mean([held.scorer.score(" ".join([p.worse, *suffix, w])) for p in pairs]) for w in words}
        before = np.mean([held.scorer.score(" ".join([p.worse, *suffix])) for p in pairs])
        best = max(words, key=lambda w: mean[w])
        if mean[best] <= before:
            break
        suffix.append(best)
    assert greedy_suffix(held, pairs, words, 3) == suffix != []


def test_candidates_are_the_frequent_words_and_some_of_the_others():
    texts = ["b a c", "b a d", "b e f"]
    words = candidate_words(texts, 4, np.random.default_rng(0))
    assert len(set(words)) == 4
    assert {"a", "b"} < set(words) < set("abcdef")
    assert candidate_words(texts, 9, np.random.default_rng(0)) == list("abcdef")


def test_a_suspected_word_is_moved_from_side_to_side():
    bounded = dataclasses.replace(SETTINGS, max_trigger_gain_sd=1.0)
    held = wordy(lambda text: letters(text) + 6 * ("velvet" in text))
    finding = trigger_finding(held, ["amber", "velvet"], bounded)
    assert finding.status == "fail"
    assert finding.detail.startswith("'velvet' gains most")
    assert finding.estimate.value == pytest.approx(6 / held.spread, abs=1e-4)
    assert trigger_finding(held, ["amber", "velvet"], SETTINGS).status == "info"
    sound = trigger_finding(wordy(letters), ["velvet"], bounded)
    assert (sound.status, sound.estimate.value) == ("pass", 0.0)
    assert trigger_finding(held, [], bounded).detail == "no word is under suspicion"


def test_a_word_that_wins_more_than_expected_is_suspected_and_no_other():
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(60)])
    a, b, outcome = [], [], []
    for i in range(600):
        left, right = (list(rng.choice(words, 6, replace=False)) for _ in range(2))
        if i % 20 == 0:
            left.append("velvet")
        a.append(" ".join(left))
        b.append(" ".join(right))
        outcome.append(1.0 if i % 20 == 0 else float(rng.random() < 0.5))
    p = np.full(600, 0.5)
    assert suspected_words(a, b, p, np.array(outcome)) == ["velvet"]
    # by hand: 30 votes, each ½ above what was expected, variance ¼: z = 15/√7.5
    lift = 30 * 0.5 / np.sqrt(30 * 0.25)
    assert lift == pytest.approx(5.477, abs=1e-3)
    assert suspected_words(b, a, 1 - p, 1 - np.array(outcome)) == ["velvet"]
    assert suspected_words(a, b, p, 1 - np.array(outcome)) == []


def length_p(held, slope=1.0):
    scores = torch.tensor([[slope * np.log1p(len(t)) for t in held.data.texts]])
    return predicted_probs(scores, held.data.columns, MODEL)


def test_the_length_slope_is_recovered_within_prompts_and_taken_off():
    data = vote_data(*WORLD)
    offset = {prompt.id: i * 10.0 for i, prompt in enumerate(dict.fromkeys(data.prompts))}
    scores = torch.tensor(
        [2.5 * np.log1p(len(t)) + offset[p.id] for p, t in zip(data.prompts, data.texts, strict=True)]
    )
    assert length_slope(scores, data.texts, data.groups) == pytest.approx(2.5, abs=1e-4)
    assert length_slope(torch.tensor([1.0, 2.0]), ["ab", "cd"], [(0, 1)]) is None
    # against least squares with a column for every prompt
    noisy = scores + torch.randn(len(scores), generator=torch.Generator().manual_seed(0))
    columns = np.array([[p.id == q for q in offset] for p in data.prompts], dtype=float)
    design = np.column_stack([np.log1p([len(t) for t in data.texts]), columns])
    oracle = np.linalg.lstsq(design, noisy.double().numpy(), rcond=None)[0][0]
    assert length_slope(noisy, data.texts, data.groups) == pytest.approx(oracle, abs=1e-4)


def test_a_length_only_reward_fails_where_length_cannot_decide():
    votes, prompts, responses = WORLD
    longer = held_with(lambda text: 2 * np.log1p(len(text)))
    findings = {
        f.name: f for f in length_findings(longer, length_p(longer), dataclasses.replace(SETTINGS, min_shorter_won=0.2))
    }
    assert findings["gate.shorter_won"].status == "fail"
    assert findings["gate.shorter_won"].estimate.value == 0.0
    assert findings["gate.length_slope"].estimate.value == pytest.approx(2.0, abs=1e-4)
    assert "instead of 0.000" in findings["gate.length_slope"].detail
    own, baseline = findings["gate.accuracy"], findings["gate.length_baseline"].estimate
    assert own.status == "info"
    assert (own.estimate.value, own.estimate.n) == (baseline.value, baseline.n)  # this model is length and nothing else
    assert own.estimate.low < own.estimate.value < own.estimate.high
    sound = {f.name: f for f in length_findings(SOUND, length_p(SOUND), SETTINGS)}
    assert sound["gate.accuracy"].estimate.value > own.estimate.value
    assert sound["gate.matched_length"].status == "pass"
    assert sound["gate.shorter_won"].status == "info"
    against = held_with(lambda text: -letters(text))
    wrong = {f.name: f for f in length_findings(against, length_p(against), SETTINGS)}
    assert wrong["gate.matched_length"].status == "fail"
    assert len(votes) > 0
    assert len(prompts) == 40
    assert len(responses) == 160


def test_equal_scores_count_half_whatever_the_rounding():
    p = np.array([0.5, 0.5 + 1e-16, 0.5 - 2e-16, 0.5 + 1e-9, 0.5 - 1e-9])
    assert correct(p, np.ones(5)).tolist() == [0.5, 0.5, 0.5, 1.0, 0.0]


def test_the_matched_slice_is_the_quarter_of_votes_whose_lengths_differ_least():
    held = SOUND
    columns = held.data.columns
    decided = [i for i, level in enumerate(columns.level.tolist()) if level != 1]
    gaps = [
        abs(np.log1p(len(held.data.texts[columns.a[i]])) - np.log1p(len(held.data.texts[columns.b[i]])))
        for i in decided
    ]
    limit = sorted(gaps)[int(np.ceil(0.25 * len(gaps))) - 1]
    right = []
    for i, gap in zip(decided, gaps, strict=True):
        if gap <= limit:
            delta = float(held.scores[columns.a[i]] - held.scores[columns.b[i]])
            right.append(0.5 if delta == 0 else float((delta > 0) == (int(columns.level[i]) == 2)))
    (finding,) = [f for f in length_findings(held, length_p(held), SETTINGS) if f.name == "gate.matched_length"]
    assert finding.estimate.value == pytest.approx(np.mean(right), abs=1e-9)


def test_equal_probabilities_count_half():
    assert correct(np.array([0.5, 0.7, 0.2]), np.array([1.0, 1.0, 1.0])).tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_flip_frac": 1.5}, "gate.max_flip_frac: found 1.5; expected a share in"),
        ({"max_attack_gain_sd": -1.0}, "gate.max_attack_gain_sd: found -1.0; expected a number ≥ 0"),
        ({"min_slope": 3.0}, "expected 0 < min_slope ≤ max_slope"),
        ({"attack_words": -1}, "gate.attack_words: found -1; expected a number ≥ 0"),
        ({"warn_only": ("praise",)}, "gate.warn_only: found 'praise'; expected names among edits, suffix"),
        ({"min_votes": 1}, "gate.min_votes: found 1; expected a number ≥ 2"),
        ({"attack_prompts": 0}, "gate.attack_prompts: found 0; expected a number ≥ 1"),
        ({"false_alarm_frac": 0.0}, "gate.false_alarm_frac: found 0.0"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        GateSettings(**changes)
