import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from karat.errors import GateError, InputError
from karat.ngrams import ngram_counts
from karat.records import Finding, user_prompt
from karat.reward.baselines import LengthBaseline, length_baseline, ngram_baseline
from karat.reward.calibration import VoteModel, decided_probs, fit_temperature, predicted_probs, vote_nll
from karat.reward.data import vote_data
from karat.reward.gate import GateProbes, check_gate, gate_checks, run_gate, sycophancy_finding
from karat.reward.raters import RaterPriors
from karat.reward.robustness import praise_finding
from karat.reward.study import Consensus, Prediction, Study, evaluate_fold, summarise
from karat.reward.thresholds import GateSettings
from reward_worlds import gold, planted_votes

PRIORS = RaterPriors(competence_sd=0.2, side_bias_sd=0.2)
MODEL = VoteModel(PRIORS, (-0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class PlantedScorer:
    """Stands in for a Scorer: two heads that agree on a function of the text."""

    score: object
    vote_model: VoteModel = MODEL

    def logits(self, _prompts, texts):
        return torch.tensor([[float(self.score(text)) for text in texts]] * 2)


@pytest.fixture(scope="module")
def world():
    return planted_votes(40, 4, 12, 3)


def gate(world, score):
    votes, prompts, responses = world
    baseline = length_baseline(vote_data(votes, prompts, responses), PRIORS)
    steps: list[tuple[int, int]] = []
    findings = run_gate(
        PlantedScorer(score), baseline, votes, prompts, responses, seed=0, progress=lambda *counts: steps.append(counts)
    )
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]  # so that the time left can be said
    return {finding.name: finding for finding in findings}


def test_the_true_reward_passes(world):
    findings = gate(world, lambda text: gold(text.split(" ")[0]))
    assert [findings[f"gate.{name}"].status for name in ("likelihood", "calibration", "praise")] == ["pass"] * 3
    assert findings["gate.length_baseline"].status == findings["gate.shorter_won"].status == "info"
    check_gate(list(findings.values()))


@pytest.mark.parametrize(
    ("score", "failed"),
    [
        (lambda text: -gold(text.split(" ")[0]), "gate.likelihood"),
        (lambda text: gold(text.split(" ")[0]) + 4 * (len(text.split(" ")[0]) % 3), "gate.calibration"),
        (lambda text: gold(text.split(" ")[0]) + 5 * ("wonderful" in text), "gate.praise"),
    ],
)
def test_each_fault_fails_its_check(world, score, failed):
    findings = gate(world, score)
    assert findings[failed].status == "fail"
    with pytest.raises(GateError, match=f"{failed} .*allow_ungated_reward: true") as caught:
        check_gate(list(findings.values()))
    assert "\n" not in str(caught.value)
    check_gate(list(findings.values()), allow_ungated=True)


@pytest.mark.parametrize(("n_raised", "status"), [(30, "pass"), (34, "pass"), (35, "fail"), (60, "fail")])
def test_praise_fails_where_the_interval_of_its_share_lies_above_the_bound(n_raised, status):
    # Wilson 1927, 95 %, by hand: 34 of 100 reach down to .2546, 35 to .2636; the bound of .26 lies between
    raised = {f"x{i}" for i in range(n_raised)}
    texts = [f"x{i}" for i in range(100)]
    held = SimpleNamespace(
        data=SimpleNamespace(prompts=[None] * 100, texts=texts), scores=torch.zeros(100), spread=1.0,
        score=lambda _, changed: torch.tensor([2.0 * (text.split()[0] in raised) for text in changed]),
    )  # fmt: skip
    found = praise_finding(held, ["Lovely!"], GateSettings(max_praise_frac=0.26))
    assert (found.status, found.estimate.value) == (status, n_raised / 100)
    if n_raised in (34, 35):
        assert found.estimate.low == pytest.approx({34: 0.2546, 35: 0.2636}[n_raised], abs=1e-4)


def test_too_few_votes_are_not_measured_and_do_not_pass(world):
    votes, prompts, responses = world
    baseline = LengthBaseline(0.1, MODEL)
    chosen = [dataclasses.replace(vote, strategy="bald") for vote in votes]
    findings = run_gate(PlantedScorer(gold), baseline, votes[:20] + chosen, prompts, responses, seed=0)
    assert {finding.status for finding in findings} == {"not measured"}
    assert "20 held-out votes on random questions" in findings[0].detail
    with pytest.raises(GateError, match="needs 50"):
        check_gate(findings)
    with pytest.raises(InputError, match="found no praise phrases"):
        run_gate(PlantedScorer(gold), baseline, votes, prompts, responses, seed=0, probes=GateProbes(praise=()))


def test_what_several_checks_failed_for_alike_is_said_once():
    few = [Finding(f"gate.{name}", "?", "not measured", detail="12 votes; needs 50.") for name in ("swap", "edits")]
    with pytest.raises(GateError, match=r"2 of its checks: gate\.swap, gate\.edits \(12 votes; needs 50\)\. Collect"):
        check_gate(few)


def test_info_and_warnings_never_stop_a_run():
    check_gate([Finding("a", "?", "info"), Finding("b", "?", "warn"), Finding("c", "?", "pass")])


def test_only_the_gates_own_findings_and_its_premises_refuse_a_reward():
    beside = [
        Finding(name, "?", "not measured")
        for name in ("people.rank", "held_out.rating.helpful", "reward.calibration.group.left")
    ]
    check_gate(gate_checks([*beside, Finding("gate.swap", "?", "pass"), Finding("reward.held_out", "?", "info")]))
    for name in ("gate.swap", "gate.leash", "reward.held_out", "reward.temperature"):
        with pytest.raises(GateError, match=rf"1 of its checks: {name} "):
            check_gate(gate_checks([*beside, Finding(name, "?", "not measured", detail="none")]))
    with pytest.raises(GateError, match="did not pass 3 of its checks"):
        check_gate(beside)  # what is handed over is what is asked


def test_temperature_recovers_a_planted_overconfidence(world):
    votes, prompts, responses = world
    data = vote_data(votes, prompts, responses)
    scores = torch.tensor([[3 * gold(text) for text in data.texts]])
    temperature = fit_temperature(scores, data.columns, VoteModel(RaterPriors(modelled=False), (-0.5, 0.5)))
    # two standard errors: 720 votes leave 0.22 (curvature of their likelihood at 3)
    assert 3 - 0.44 < temperature < 3 + 0.44
    assert fit_temperature(-scores, data.columns, MODEL) > 15


def test_predictions_are_probabilities_that_swap_with_the_sides(world):
    votes, prompts, responses = world
    data = vote_data(votes, prompts, responses)
    scores = torch.randn(3, len(data.texts), generator=torch.Generator().manual_seed(0))
    probs = predicted_probs(scores, data.columns, MODEL)
    assert torch.allclose(probs.sum(1), torch.ones(len(votes), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(probs.flip(1), predicted_probs(scores, data.columns.swapped(), MODEL), atol=1e-9)
    shifted = predicted_probs(scores + torch.tensor([[1.0], [2.0], [-3.0]]), data.columns, MODEL)
    assert torch.allclose(probs, shifted, atol=1e-5)
    p, outcome, positions = decided_probs(probs, data.columns)
    assert len(p) == len(outcome) == len(positions) == int((data.columns.level != 1).sum())
    uniform = predicted_probs(
        torch.zeros(1, len(data.texts)), data.columns, VoteModel(RaterPriors(modelled=False), (-np.log(2), np.log(2)))
    )
    assert float(vote_nll(uniform, data.columns).mean()) == pytest.approx(np.log(3), abs=1e-6)


def test_length_baseline_finds_the_sign_of_length():
    votes, prompts, responses = planted_votes(30, 4, 6, 3)
    for sign in (1, -1):
        own = []
        for vote in votes:
            delta = sign * (len(responses[vote.a].text) - len(responses[vote.b].text))
            own.append(dataclasses.replace(vote, level=1 + (delta > 0) - (delta < 0)))
        data = vote_data(own, prompts, responses)
        assert sign * length_baseline(data, PRIORS).slope > 1
    same = {key: dataclasses.replace(response) for key, response in responses.items()}
    flat = dataclasses.replace(vote_data(votes, prompts, same), texts=("aaa",) * len(responses))
    with pytest.raises(InputError, match="same length"):
        length_baseline(flat, PRIORS)


def test_ngram_baseline_learns_a_word_and_its_likelihood_beats_guessing():
    votes, prompts, responses = planted_votes(30, 4, 6, 2)
    texts = {rid: f"word{i % 7} {'good' if i % 2 else 'bad'}" for i, rid in enumerate(responses)}
    named = {rid: dataclasses.replace(responses[rid]) for rid in responses}
    own = [dataclasses.replace(v, level=1 + ("good" in texts[v.a]) - ("good" in texts[v.b])) for v in votes]
    data = vote_data(own, prompts, named)
    data = dataclasses.replace(data, texts=tuple(texts[rid] for rid in data.response_ids))
    baseline = ngram_baseline(data, PRIORS)
    good, bad = baseline.scores(["something good", "something bad"])[0].tolist()
    assert good > bad + 1
    nll = vote_nll(predicted_probs(baseline.scores(data.texts), data.columns, baseline.vote_model), data.columns)
    assert float(nll.mean()) < 0.6


def test_ngram_counts_are_words_pairs_and_characters():
    counts = ngram_counts(["The cat. the CAT!", "dog", ""])
    half = counts.shape[1] // 2
    assert counts[0, :half].sum() == 4 + 3  # four words, three pairs
    assert sorted(counts[1, half:].data.tolist()) == [1] * 6  # " dog ": three 3-grams, two 4-grams, one 5-gram
    assert counts[2].sum() == 0
    assert (ngram_counts(["a b"]) != ngram_counts(["A  b"])).nnz == 0


def test_a_study_compares_systems_on_the_same_rows():
    votes, prompts, responses = planted_votes(24, 4, 8, 2)
    pairs = {(v.a, v.b) for v in votes}
    consensus = []
    for a, b in sorted(pairs):
        delta = gold(responses[a].text) - gold(responses[b].text)
        consensus.append(Consensus(a, b, None if delta == 0 else a if delta > 0 else b))

    def predictor(score):
        return lambda _prompts, texts: Prediction(torch.tensor([[float(score(t)) for t in texts]]), MODEL)

    study = Study()
    predictors = {"truth": predictor(gold), "length": predictor(len), "nothing": predictor(lambda _text: 0)}
    for topics in (("t0", "t1"), ("t2", "t3")):
        inside = {prompt.id for prompt in prompts.values() if prompt.topic in topics}
        own = [vote for vote in votes if vote.prompt_id in inside]
        pairs_inside = [pair for pair in consensus if responses[pair.a].prompt_id in inside]
        evaluate_fold(study, predictors, own, pairs_inside, prompts, responses)
    summary = summarise(study, baseline="length", rng=np.random.default_rng(0))
    assert summary["truth"]["accuracy"].value == 1.0
    assert summary["nothing"]["accuracy"].value == 0.5
    assert summary["truth"]["accuracy_minus_baseline"].low > 0
    assert summary["truth"]["nll_minus_baseline"].high < 0
    assert summary["length"]["accuracy_shorter_won"].value == 0.0
    assert summary["truth"]["accuracy"].n == 4
    n_decided = sum(pair.preferred is not None for pair in consensus)
    assert len(study.pair_topic) == len(study.systems["truth"].correct) == n_decided
    with pytest.raises(InputError, match="found no system 'x'"):
        summarise(study, baseline="x", rng=np.random.default_rng(0))


class LikesWord:
    """A scorer that counts a word."""

    def __init__(self, word):
        self.word = word

    def logits(self, prompts, texts):
        assert len(prompts) == len(texts)
        return torch.tensor([[float(text.split().count(self.word)) for text in texts]])


@pytest.mark.parametrize(("word", "status"), [("yes", "fail"), ("no", "pass")])
def test_a_reward_that_prefers_agreement_fails_where_a_bound_is_set(word, status):
    pairs = [(user_prompt(f"is it {i} ?"), "no .", "yes .") for i in range(40)]
    finding = sycophancy_finding(LikesWord(word), pairs, 0.5)
    assert finding.status == status
    assert finding.estimate.value == (1.0 if word == "yes" else 0.0)
    assert sycophancy_finding(LikesWord(word), pairs, None).status == "info"


def test_a_bound_without_probe_pairs_is_not_measured_and_does_not_pass():
    assert sycophancy_finding(LikesWord("yes"), [], None).status == "info"
    unmeasured = sycophancy_finding(LikesWord("yes"), [], 0.5)
    assert unmeasured.status == "not measured"
    with pytest.raises(GateError, match=r"gate\.sycophancy"):
        check_gate([unmeasured])
