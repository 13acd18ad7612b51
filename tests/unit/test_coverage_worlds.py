"""The worlds and figures of the studies of intervals: what they draw is what is believed, and z is 1 where a posterior is right."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
from bench import halo_coverage, mixture_coverage
from bench.halo_coverage import summary as halo_summary
from bench.mixture_coverage import N_PAIRS, squares, summary
from bench.worlds.halo import WORLDS as HALO_WORLDS
from bench.worlds.halo import drawn_world as halo_world
from bench.worlds.mixed_tastes import WIDTHS, WORLDS, believed_world

from karat.reward.last_layer import LastLayer
from karat.reward.sampled_layer import SIZE

FEW = dataclasses.replace(WORLDS[1], asked=dict.fromkeys(WIDTHS, 4), n_raters=3, n_texts=12)


def test_sizes_of_believed_worlds_are_those_that_are_believed_and_their_statements_are_about_their_texts():
    logs = []
    for seed in range(120):
        features, batch, mean = believed_world(FEW, seed)
        logs.append(np.log(np.std(features @ mean)))
        assert {channel.name: len(channel) for channel in batch.channels} == FEW.asked
        for channel in batch.channels:
            assert channel.texts.shape[1] == WIDTHS[channel.name]
            assert channel.texts.max() < FEW.n_texts
            assert all(len(set(row)) == len(row) for row in channel.texts.tolist())
            if channel.kind == "correction":
                assert channel.columns.level.tolist() == [1] * 4  # what was written is better
    # of four weights the logarithm of a size is .15 below and .4 apart beside the 1.0 believed: standard errors of .1 and .07
    assert abs(np.median(logs) - (SIZE[0] - 0.15)) < 0.35
    assert 0.8 < np.std(logs) < 1.4


def test_squares_of_a_right_posterior_have_a_mean_of_one_along_the_truth_and_across_it():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    covariance, mean = root @ root.T, np.array([90.0, -60, 30, 80])  # far from 0: the truth has one direction
    posterior = LastLayer(mean, covariance, 1.0, 0.0, 0.0)
    found = [squares(posterior, mean + root @ rng.standard_normal(4)) for _ in range(2000)]
    for name in ("z2", "z2_size", "z2_shape"):
        # χ²_k/k, k ≤ 4, of 2,000: standard errors of at most .032
        assert abs(np.mean([one[name] for one in found]) - 1) < 0.15
    truth = np.array([2.0, 0, 0, 0])
    sure = LastLayer(truth + np.array([0.3, 0, 0.1, 0]), np.eye(4) / 100, 1.0, 0.0, 0.0)
    assert {name: value for name, (value,) in squares(sure, truth).items()} == pytest.approx(
        {"z2": 10 / 4, "z2_size": 9.0, "z2_shape": 1 / 3}
    )


def test_figures_of_a_world_are_means_over_its_seeds():
    plain = {"slope": 1.0, "width": 2.0, "rhat": 1.0, "taste_sd": 0.5, "cpu_s": 1.0, "z2_size": 1.0, "z2_shape": 1.0}
    runs = [
        {"seed": s, "drawn along": {"n_covered": n, "z2": z2, **plain}} for s, n, z2 in ((0, 200, 0.5), (1, 160, 1.5))
    ]
    (row,) = summary(runs).values()
    assert (row["covered"][0], row["n_pairs"], row["n_seeds"]) == (0.9, 2 * N_PAIRS, 2)
    assert row["rms_z"][0] == 1.0
    kinds = [f"{kind} {name} " for kind in ("apart", "joint") for name in ("sum", "difference")]
    one = {"seed": 0, "found": 0.5, "taken": 0.4, "cpu_s": 1.0}
    one |= {name + figure: value for name in kinds for figure, value in (("n", 180.0), ("z2", 4.0), ("width", 1.0))}
    found = halo_summary([one, one | {"seed": 1}])
    assert found["joint sum"]["covered"][0] == 0.9
    assert found["joint sum"]["rms_z"] == 2.0


def test_a_planted_halo_is_in_the_noise_or_in_the_tastes_of_the_same_rater():
    for spec in HALO_WORLDS:
        spec = dataclasses.replace(spec, n_raters=60, n_texts=60, n_asked=3000)
        features, batch, weights = halo_world(spec, 0)
        left = []
        for o, channel in enumerate(batch.channels):
            columns = channel.columns
            phi, who = features[columns.response.numpy()], columns.annotator.numpy()
            off = columns.value.numpy() - 0.15 * phi @ weights[o]
            off -= (np.bincount(who, off) / np.bincount(who))[who]
            inside = (columns.value.numpy() > 0) & (columns.value.numpy() < 1)
            left.append(np.where(inside, off, np.nan))
        both = ~np.isnan(left).any(0)
        # of a noise of .12 and tastes of .6·.15 in each of four features, var .0144 + 4·.0081
        shared = spec.halo * 0.0144 + spec.spilt * 4 * (0.15 * spec.taste_sd) ** 2
        whole = 0.0144 + 4 * (0.15 * spec.taste_sd) ** 2
        found = np.corrcoef(left[0][both], left[1][both])[0, 1]
        # 3,000 answers, of 60 raters where tastes are shared; the ends of the scale are left out
        assert abs(found - shared / whole) < 0.12, spec.name


@pytest.mark.parametrize("study", [halo_coverage, mixture_coverage])
def test_a_study_goes_on_where_it_stopped_and_keeps_the_worlds_it_is_not_asked_for(
    study, tmp_path, monkeypatch, capsys
):
    begun = []

    def figures(spec, seed, **_):
        begun.append((spec.name, seed))
        if study is halo_coverage:
            keys = [f"{kind} {name} {what}" for kind in ("apart", "joint") for name in ("sum", "difference")
                    for what in ("n", "z2", "width")]  # fmt: skip
            return {"found": 0.5, "taken": 0.25, "cpu_s": 1.0, **dict.fromkeys(keys, 100.0 + seed)}
        own = {key: [1.0] for key in ("slope", "width", "rhat", "taste_sd", "cpu_s", "z2", "z2_size", "z2_shape")}
        return {"drawn along": {"covered": [1.0] * (100 + seed), **own}}

    def run(*options):
        begun.clear()
        monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "found.json"), *options])
        study.main()
        capsys.readouterr()
        return json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))

    monkeypatch.setattr(study, "covered", figures)
    first, second = (world.name for world in study.WORLDS[:2])
    run("--seeds", "1", "--first-seed", "1", "--only", first)
    found = run("--seeds", "2", "--only", f"{first},{second}")
    assert begun == [(first, 0), (second, 0), (second, 1)]
    assert [list(found["worlds"][name]["rows"]) for name in (first, second)] == [["1", "0"], ["0", "1"]]
    assert found["worlds"][first]["summary"] == study.summary(list(found["worlds"][first]["rows"].values()))
    again = run("--seeds", "3", "--only", second)
    assert begun == [(second, 2)]
    assert again["worlds"][first] == found["worlds"][first]
