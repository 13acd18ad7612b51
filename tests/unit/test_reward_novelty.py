"""The detector of unfamiliar responses: its covariance, its threshold, and a planted shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from karat.errors import CheckpointError, InputError
from karat.lm.load import load_lm
from karat.probes import word_salad
from karat.records import user_prompt
from karat.reward.model import HeadConfig, RewardModel
from karat.reward.novelty import (
    FILE,
    fit_novelty,
    ledoit_wolf,
    load_novelty,
    novelty_finding,
    save_novelty,
    text_features,
)
from karat.reward.trunk import DecoderTrunk
from karat.stats import auroc
from tiny_models import tiny_checkpoint


def normal(n, d=6, *, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, d, generator=generator) @ mix + shift


def slow_ledoit_wolf(x):
    """The lemmas of the paper, term by term."""
    x = x - x.mean(0)
    n, d = x.shape
    s = x.T @ x / n
    mu = np.trace(s) / d
    delta2 = ((s - mu * np.eye(d)) ** 2).sum() / d
    beta2 = sum(((np.outer(row, row) - s) ** 2).sum() / d for row in x) / n**2
    beta2 = min(beta2, delta2)
    return beta2 / delta2 * mu * np.eye(d) + (1 - beta2 / delta2) * s


@pytest.mark.parametrize("n", [3, 10, 200])
def test_the_covariance_is_the_papers(n):
    x = normal(n)
    assert torch.allclose(ledoit_wolf(x), torch.from_numpy(slow_ledoit_wolf(x.double().numpy())), atol=1e-9)


def test_distances_are_mahalanobis_and_do_not_depend_on_the_axes():
    train, held = normal(400), normal(150, seed=1)
    detector = fit_novelty(train, held, false_alarm_frac=0.05)
    precision = np.linalg.inv(slow_ledoit_wolf(train.double().numpy()))
    centred = held.double().numpy() - train.double().numpy().mean(0)
    slow = np.sqrt(np.einsum("ni,ij,nj->n", centred, precision, centred))
    assert np.allclose(detector.distance(held).numpy(), slow, atol=1e-9)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5))).Q
    turned = fit_novelty(train @ turn, held @ turn, false_alarm_frac=0.05)
    assert turned.threshold == pytest.approx(detector.threshold, abs=1e-4)


def test_the_false_alarm_share_holds_on_fresh_responses():
    detector = fit_novelty(normal(400), normal(399, seed=1), false_alarm_frac=0.05)
    alarms = int(detector.unfamiliar(normal(4000, seed=2)).sum())
    # the threshold is the 380th of 399: its own share is Beta(20, 380), sd .011; with 4,000 draws sd .0115; 3 sd = .035
    assert 0.05 - 0.035 < alarms / 4000 < 0.05 + 0.035
    ties = torch.zeros(99, 6)
    assert fit_novelty(normal(400), ties, false_alarm_frac=0.01).unfamiliar(ties).sum() == 0


def test_bad_detectors_are_refused():
    with pytest.raises(InputError, match=r"found 50 held-out responses; a false-alarm share of 0\.01 needs 99"):
        fit_novelty(normal(400), normal(50), false_alarm_frac=0.01)
    with pytest.raises(InputError, match=r"false_alarm_frac 1.0; expected a share in"):
        fit_novelty(normal(400), normal(50), false_alarm_frac=1.0)
    with pytest.raises(InputError, match="found 1 training responses"):
        fit_novelty(normal(1), normal(50), false_alarm_frac=0.1)
    with pytest.raises(InputError, match="features that never differ"):
        fit_novelty(torch.ones(9, 6), normal(50), false_alarm_frac=0.1)


def test_a_planted_shift_of_the_texts_is_found(tmp_path):
    trunk = DecoderTrunk(load_lm(tiny_checkpoint("qwen3", tmp_path / "lm")))
    model = RewardModel(trunk, HeadConfig(n_heads=1), seed=0)
    rng = np.random.default_rng(0)
    names = ("zoka", "melu", "tavo", "nish")
    texts = [f"the home of {names[i % 4]} is {w} ." for i, w in enumerate(rng.choice(["red", "river", "hill"], 160))]
    prompts = [user_prompt(f"q{i % 40} ?") for i in range(160)]
    features = text_features(model, prompts, texts)
    # the same features whichever texts are read together
    assert torch.allclose(features[5:6], text_features(model, prompts[5:6], texts[5:6]), atol=1e-4)
    detector = fit_novelty(features[:100], features[100:], false_alarm_frac=0.1)
    shifted = text_features(model, prompts[100:], ["XQ#" * 6 for _ in range(60)])
    area = auroc(
        torch.cat([detector.distance(features[100:]), detector.distance(shifted)]).numpy(), np.repeat([0, 1], 60)
    ).value
    assert area > 0.9
    finding = novelty_finding(detector, features[100:], shifted, what="shouting")
    assert finding.status == "info"
    assert finding.estimate.value == area
    assert "reports 100% of them" in finding.detail
    save_novelty(detector, tmp_path, metadata={"run_id": "r"})
    loaded = load_novelty(tmp_path)
    assert torch.equal(loaded.distance(shifted), detector.distance(shifted))
    assert (loaded.threshold, loaded.false_alarm_frac) == (detector.threshold, detector.false_alarm_frac)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not readable as a detector"):
        load_novelty(tmp_path)
    assert load_novelty(tmp_path / "lm") is None


def test_word_salad_keeps_the_words():
    salad = word_salad(["a b c d e f g", ""], np.random.default_rng(0))
    assert sorted(salad[0].split()) == list("abcdefg")
    assert salad[0] != "a b c d e f g"
    assert salad[1] == ""
