"""A population beside a reward model: fitted, saved, loaded, scored as groups; and one person's artefact."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from karat.belief import to_reference, worst_group
from karat.errors import CheckpointError, ConfigError, InputError
from karat.lm.load import load_lm
from karat.pipeline.personalise import Asking, personalise
from karat.records import user_prompt
from karat.reward.fit import fit_reward, save_fitted
from karat.reward.model import HeadConfig
from karat.reward.people import (
    common_group_scale,
    features_of,
    fit_feature_map,
    group_scorer,
    limits_of,
    load_people,
    reward_features,
    save_people,
    trunk_features,
)
from karat.reward.people_fit import PluralismConfig, enough_votes, fit_people
from karat.reward.people_report import not_measured, people_findings, people_metrics
from karat.reward.person_file import CARD, SavedPerson, load_person, save_person
from karat.reward.personal import new_person, standing, updated
from karat.reward.score import load_scorer, save_reward, scorer_of
from karat.reward.settings import LaplaceConfig
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from karat.reward.users import Posterior
from tiny_models import tiny_checkpoint
from two_groups import GROUPS, opinions

CONFIG = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=3e-3, head_learning_rate=1e-2, n_refits=1)
PLURALISM = PluralismConfig(
    enabled=True, n_features=6, max_rank=2, max_kinds=2, n_starts=1, floors={"preference": -50.0}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("people")
    votes, prompts, responses = opinions()
    lm = load_lm(tiny_checkpoint("qwen3", place / "base"), for_training=True)
    reward = train_reward(DecoderTrunk(lm), votes, prompts, responses, config=CONFIG, seed=0)
    scorer = scorer_of(reward)
    last = list(prompts)[-8:]
    held = [vote for vote in votes if vote.prompt_id in last]
    kept = [vote for vote in votes if vote.prompt_id not in last]
    names = sorted({vote.annotator for vote in votes})
    texts = [one.text for one in responses.values()]
    asked = [prompts[one.prompt_id] for one in responses.values()]
    fit = fit_people(
        scorer, kept, held, prompts, responses, groups=GROUPS, side_bias={}, reference=(asked, texts),
        weights={name: 3.0 if GROUPS[name] == "right" else 0.5 for name in names}, config=PLURALISM, seed=0, group_rank=1,
    )  # fmt: skip
    directory = save_reward(reward, place / "reward", metadata={"run_id": "r"})
    save_people(fit.model, directory, metadata={"run_id": "r"})
    return fit, scorer, directory, asked, texts


def test_groups_want_what_was_planted_and_their_worst_is_the_smaller(made):
    fit, scorer, _, asked, _texts = made
    assert fit.model.users.groups == ("left", "right")
    assert fit.model.users.rank >= 1
    groups = group_scorer(scorer, fit.model)
    prompts = [asked[0], asked[0]]
    belief = groups(prompts, ["aaa", "bbb"])
    left, right = (belief.draws[..., g].mean(0) for g in (0, 1))
    assert left[0] > left[1]
    assert right[1] > right[0]
    assert belief.objectives == ("left", "right")
    assert belief.draws.shape == (16, 2, 2)
    psi = features_of(scorer, fit.model.features, prompts, ["aaa", "bbb"])
    assert belief.draws.mean(0).double().numpy() == pytest.approx(psi @ fit.model.group_theta().T, abs=1e-4)
    relative = to_reference(belief).mean(0)
    assert torch.equal(worst_group(belief), relative.amin(-1))
    assert float(belief.draws.std(0).min()) > 0
    assert groups.model is scorer.model


def test_references_of_a_prompt_are_its_zero(made):
    fit, scorer, _, asked, _ = made
    calls = []

    def written(prompts):
        calls.append([prompt.id for prompt in prompts])
        return [["ab", "cd"] for _ in prompts]

    groups = group_scorer(scorer, fit.model).with_references(written)
    one = asked[0]
    belief = groups([one, one], ["ab", "cd"])
    assert to_reference(belief).mean(1).abs().max() < 1e-5  # the references themselves average to 0
    groups([one], ["b"])
    assert calls == [[one.id]]  # asked once a prompt
    again = group_scorer(scorer, fit.model).with_references(written)
    assert torch.allclose(again([one], ["b"]).reference, groups([one], ["b"]).reference)
    with pytest.raises(InputError, match="found 1 prompts and 0 texts"):
        groups([one], [])


def test_what_is_saved_is_what_was_fitted(made):
    fit, scorer, directory, asked, texts = made
    model = load_people(directory)
    before = group_scorer(scorer, fit.model)(asked[:4], texts[:4])
    after = group_scorer(load_scorer(directory), model)(asked[:4], texts[:4])
    assert torch.allclose(before.draws, after.draws, atol=1e-4)
    assert model.annotators == fit.model.annotators
    assert model.people.n_votes.sum() == fit.model.people.n_votes.sum()
    assert model.limits.floors == {"preference": -50.0}
    assert model.scale is None
    card = json.loads((directory / "people_card.json").read_text())
    assert card["groups"] == ["left", "right"]
    assert card["rank"] == model.users.rank


def test_a_population_in_which_nobody_differs_is_saved_too(made, tmp_path):
    fit, scorer, directory, *_ = made
    users, n = fit.model.users, len(fit.model.annotators)
    flat = dataclasses.replace(
        users, basis=users.basis[:0], mean=users.mean[:, :0], mean_cov=users.mean_cov[:, :0, :0], cov=users.cov[:0, :0]
    )  # fmt: skip
    nobody = Posterior(np.zeros((n, 0)), np.zeros((n, 0, 0)), fit.model.people.n_votes)
    save_people(dataclasses.replace(fit.model, users=flat, people=nobody), tmp_path, metadata={})
    model = load_people(tmp_path)
    belief = group_scorer(scorer, model)([user_prompt("q1")] * 2, ["aa", "bb"])
    ratio = belief.draws[..., 0] / belief.draws[..., 1]
    assert model.users.rank == 0
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
    assert "rank 0" in standing(model.users, new_person(model.users))
    # of whom nothing can be learnt nobody asks anything, nor are responses needed
    reward = shutil.copytree(directory, tmp_path / "reward")
    for file in tmp_path.glob("people*"):
        shutil.copy(file, reward / file.name)
    with pytest.raises(InputError, match="--simulate nobody: expected one of the population's raters"):
        personalise(reward, None, tmp_path / "ada", None, Asking(simulate="nobody"))
    assert not (tmp_path / "ada").exists()
    done = personalise(reward, None, tmp_path / "ada", _never, Asking())
    assert (done.n_votes, done.n_skipped) == (0, 0)
    assert "no answer would change anything" in done.standing
    assert (tmp_path / "ada").is_dir()


def _never(*_) -> None:
    raise AssertionError("a question was asked")


def test_damaged_and_missing_populations_are_said(made, tmp_path):
    fit, _, _, _, _ = made
    with pytest.raises(CheckpointError, match=r"found no people_card.json; expected a reward model with a population"):
        load_people(tmp_path)
    broken = dataclasses.replace(
        fit.model, users=dataclasses.replace(fit.model.users, cov=-fit.model.users.cov)
    )  # fmt: skip
    save_people(broken, tmp_path, metadata={})
    with pytest.raises(CheckpointError, match="cov is not positive definite"):
        load_people(tmp_path)
    (tmp_path / "people_card.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as a population"):
        load_people(tmp_path)


def test_the_report_hears_of_groups_tenths_juries_and_flips(made):
    fit, *_ = made
    found = {finding.name: finding for finding in people_findings(fit)}
    wanted = {"rank", "kinds", "overall", "worst_group", "worst_decile", "jury_change", "raking_flips", "group_gap"}
    assert wanted <= {name.removeprefix("people.") for name in found}
    one, own = fit.one_reward, fit.own_reward
    assert own.worst_group.value > one.worst_group.value  # one reward follows the left, who are more
    assert f"{own.worst_group.value:.3f}" in found["people.worst_group"].detail
    assert 0 < fit.raking.flip_share.value < 1
    assert fit.verdicts.jury_change.n == 30
    metrics = people_metrics(fit)
    rows = metrics["raking"]["flips"]
    assert metrics["raking"]["n_flips"] == len(fit.raking.flips) >= len(rows) > 0
    assert all(one["unweighted"] * one["weighted"] < 0 for one in rows)
    changes = [abs(one["unweighted"] - one["weighted"]) for one in rows]
    assert changes == sorted(changes, reverse=True)
    told = found["people.raking_flips"].detail
    assert f"{metrics['raking']['n_flips']} pairs flip" in told
    assert f"“{rows[0]['prompt']}”: “" in told
    assert metrics["rank"] == fit.rank.rank
    assert set(metrics["one_reward"]["by_group"]) == {"left", "right"}
    chosen = dataclasses.replace(fit, rank=dataclasses.replace(fit.rank, rank=0))
    assert people_findings(chosen)[0].detail.startswith(
        f"rank 0, {fit.model.users.rank} kept so that groups can differ"
    )
    assert not_measured("why")[0].status == "not measured"
    unknown = people_findings(dataclasses.replace(fit, one_reward=None, own_reward=None, verdicts=None, raking=None))
    assert [(one.name, one.status) for one in unknown][-1] == ("people.worst_group", "not measured")


def test_too_few_votes_make_no_population():
    votes, *_ = opinions(n_prompts=3)
    assert enough_votes(votes, PLURALISM) == "a median of 3 votes a rater; a population needs 8"
    assert enough_votes(votes[:3], PLURALISM) == "3 raters; a population needs at least 4"
    assert enough_votes([], PLURALISM) is not None
    assert enough_votes(opinions(n_prompts=9)[0], PLURALISM) is None
    with pytest.raises(ConfigError, match=r"pluralism\.n_features: found 0"):
        PluralismConfig(n_features=0)
    with pytest.raises(ConfigError, match="jury: found"):
        PluralismConfig(jury={"left": -1.0})
    with pytest.raises(ConfigError, match=r"found the field 'age'; expected only `group`.*karat quality --population"):
        PluralismConfig(target={"group": {"left": 0.5, "right": 0.5}, "age": {"18–24": 1.0}})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"target": {"group": {"left": 0.6, "right": 0.7}}},
            r"pluralism\.target: group: found .*in all 1\.3; expected",
        ),
        ({"target": {"group": {"left": -0.1, "right": 1.1}}}, r"pluralism\.target: group: found .*0 or more"),
        ({"target": {"group": {}}}, r"pluralism\.target: group: found \{\}"),
        ({"jury": {"left": 0.5, "right": 0.1}}, r"pluralism\.jury: found .*in all 0\.6; expected shares that sum to 1"),
    ],
)
def test_shares_sum_to_one_or_are_counts(given, says):
    with pytest.raises(ConfigError, match=says):
        PluralismConfig(**given)
    rounded, counts = dict.fromkeys("abc", 0.33), {"left": 3, "right": 40}
    assert PluralismConfig(target={"group": rounded}, jury=counts).jury == counts


def test_feature_map_is_white_within_prompts():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + np.repeat(rng.normal(0, 50, (50, 5)), 4, axis=0)
    index = np.repeat(np.arange(50), 4)
    found, stand = fit_feature_map(phi, phi[:, 0], index, 3)
    moved = phi @ found.directions.T
    assert stand == pytest.approx(moved)
    means = moved.reshape(50, 4, 3).mean(1)
    centred = moved - np.repeat(means, 4, axis=0)
    assert centred.T @ centred / 150 == pytest.approx(np.eye(3), abs=1e-8)
    assert found.centre[1:] == pytest.approx(moved.mean(0))
    assert found.centre[0] == pytest.approx(phi[:, 0].mean())
    with pytest.raises(InputError, match="no prompt has two responses"):
        fit_feature_map(phi[:3], phi[:3, 0], np.arange(3), 2)
    theta = rng.normal(size=(2, 3)) * np.array([[1.0], [9.0]])
    scale = common_group_scale(theta, moved, index)
    scores = (centred @ (theta * scale[:, None]).T) ** 2
    assert scores.sum(0)[0] == pytest.approx(scores.sum(0)[1])


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """People of a reward that reads n-grams beside a trunk which was hardly trained, and people on the trunk's features alone."""
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("beside") / "base")
    votes, prompts, responses = opinions()
    config = RewardConfig(
        heads=HeadConfig(n_heads=2), learning_rate=1e-6, head_learning_rate=1e-4, n_refits=0, posterior="laplace",
        laplace=LaplaceConfig(n_draws=8, tastes=False), beside=("ngrams", "place"),
    )  # fmt: skip
    trunk = lambda: DecoderTrunk(load_lm(path, for_training=True))  # noqa: E731
    fitted = fit_reward(trunk, votes, prompts, responses, config=config, seed=0)
    last = list(prompts)[-8:]
    held, kept = ([vote for vote in votes if (vote.prompt_id in last) == known] for known in (True, False))

    def people(scorer):
        return fit_people(
            scorer, kept, held, prompts, responses, groups=GROUPS, side_bias={}, config=PLURALISM, seed=0, group_rank=1
        )

    return fitted, people(fitted.scorer), people(dataclasses.replace(fitted.scorer, side=None)), prompts, responses


def test_tastes_are_over_what_the_reward_reads_beside_its_trunk(beside, tmp_path):
    fitted, fit, alone, prompts, responses = beside
    assert fit.model.features.side.names == ("ngrams", "place")
    assert alone.model.features.side is None
    assert fit.own_reward.overall.value > fit.one_reward.overall.value
    texts = ["aaaa", "bbbb", "cdcd"]
    asked = [next(iter(prompts.values()))] * 3
    psi = features_of(fitted.scorer, fit.model.features, asked, texts)
    # slow: the same features from their parts, the plain ones through the basis of the texts that were voted on
    phi, side = reward_features(fitted.scorer, *voted(prompts, responses))
    assert side.width == phi.shape[1] - fitted.scorer.model.trunk.width
    trunk = trunk_features(fitted.scorer, asked, texts)
    found, _ = fit_feature_map(phi, np.zeros(len(phi)), np.zeros(len(phi), dtype=int), 1, side)
    by_parts = trunk @ found.directions.T + found.side.scores(asked, texts)[..., 0].numpy().T
    whole = np.concatenate([trunk, side.of(asked, texts)], axis=1)
    values, vectors = np.linalg.eigh(np.cov(phi.T))
    by_hand = whole @ vectors[:, -1:] / np.sqrt(values[-1])
    assert np.abs(by_parts - by_parts[:1]) == pytest.approx(np.abs(by_hand - by_hand[:1]), abs=1e-3)
    # saved with the people, and gone with its file
    directory = save_fitted(fitted, tmp_path / "reward", metadata={})
    save_people(fit.model, directory, metadata={})
    again = load_people(directory)
    assert features_of(load_scorer(directory), again.features, asked, texts) == pytest.approx(psi, abs=1e-3)
    (directory / "people_beside.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found no people_beside\.safetensors"):
        load_people(directory)


def voted(prompts, responses):
    own = list(responses.values())
    return [prompts[one.prompt_id] for one in own], [one.text for one in own]


def test_a_person_on_disk_belongs_to_her_population(made, tmp_path):
    fit, _, directory, _, _ = made
    users = fit.model.users
    x = np.random.default_rng(0).normal(size=(3, users.shared.shape[0]))
    person = updated(users, new_person(users, 1), x, np.array([0, 2, 1]))
    saved = SavedPerson(person, "ada", (("p", "a", "b"),) * 3, (("p", "a", "c"),))
    target = save_person(saved, fit.model, directory, tmp_path / "ada")
    again = load_person(target, fit.model, directory)
    assert again.person.mean == pytest.approx(person.mean)
    assert (again.asked, again.skipped) == (saved.asked, saved.skipped)
    assert again.person.group == 1
    card = json.loads((target / CARD).read_text())
    assert card["group"] == "right"
    assert card["n_votes"] == 3
    assert "3 answers" in card["standing"]
    assert all(now < before for now, before in zip(card["sd"], card["sd_before"], strict=True))
    other = tmp_path / "other"
    other.mkdir()
    save_people(dataclasses.replace(fit.model, group_scale=2 * fit.model.group_scale), other, metadata={})
    with pytest.raises(InputError, match="asked with another population"):
        load_person(target, fit.model, other)
    with pytest.raises(CheckpointError, match="expected what `karat personalise` wrote"):
        load_person(tmp_path / "nobody", fit.model, directory)
    bad = dataclasses.replace(saved, person=dataclasses.replace(person, cov=-person.cov))
    save_person(bad, fit.model, directory, tmp_path / "bad")
    with pytest.raises(CheckpointError, match="cov is not positive definite"):
        load_person(tmp_path / "bad", fit.model, directory)


def test_limits_are_read_or_refused():
    assert limits_of({"floors": {"harmless": -1}, "principles": ["threat"]}, "x").principles == ("threat",)
    for wrong in ([], {"floor": {}}, {"floors": {"a": "low"}}, {"principles": "threat"}, {"principles": [1]}):
        with pytest.raises(InputError, match=r"x: found .*; expected"):
            limits_of(wrong, "x")
