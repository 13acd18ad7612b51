"""The sixth and seventh designs of the time-to-score study: what a run costs, how settings are halved, and what the page says."""

from __future__ import annotations

import pytest
from bench import equal_scores_study, score_study
from bench import own_steps_study as study
from bench.own_batch import race_name, window_of
from bench.own_steps_study import CAP, DESIGN, LISTS, SURVIVORS, Watched, choice, name_of, run_cost, wanted

DESIGNS = [DESIGN, equal_scores_study.DESIGN]
HIGH = max(study.MARKS["length"])


def run(iterations: int, seconds: float = 1.0) -> dict:
    """A run whose mean of three is at both marks after so many iterations."""
    return {"scores": [0.0] * (iterations - 3) + [HIGH] * 3, "cpu_seconds": [seconds] * iterations}


def test_a_run_costs_the_mean_of_both_marks_and_the_cap_where_one_is_missed() -> None:
    assert run_cost(run(5), "length", 3) == 5.0
    low = study.MARKS["length"][0]
    assert run_cost({"scores": [low] * 4, "cpu_seconds": [2.0] * 4}, "length", 3) == (6.0 + CAP) / 2
    fallen = {"scores": [low, low, 0.0, 0.0], "cpu_seconds": [2.0] * 4}
    assert run_cost(fallen, "length", 3) == CAP


def test_the_best_go_on_and_a_fall_on_a_later_seed_costs_the_choice() -> None:
    runs, made = {}, []
    (early, late), settings = DESIGN.stages["length"], LISTS["length"]
    best, second = settings[3], settings[5]
    while missing := wanted(DESIGN, runs, "length")[0]:
        one, seed = missing[0]
        falls = one == best and seed in late
        runs[name_of(one, seed)] = (
            {"scores": [0.0], "cpu_seconds": [CAP]} if falls else run(3 if one == best else 4 if one == second else 9)
        )
        made.append((one, seed))
        assert (choice(DESIGN, runs, "length") is None) == bool(wanted(DESIGN, runs, "length")[0])
    assert made[: len(settings) * len(early)] == [(one, seed) for seed in early for one in settings]
    assert [seed for one, seed in made if one == best] == [*early, *late]
    assert len({name_of(one, 0) for one, seed in made if seed in late}) == SURVIVORS
    assert choice(DESIGN, runs, "length") == second


def test_runs_that_cannot_change_the_choice_are_left_out() -> None:
    seeds, runs = DESIGN.stages["word"][-1], {}
    good, poor, open_still = LISTS["word"][:3]
    for seed in seeds:
        runs[name_of(good, seed)] = {"scores": [10.0] * 3, "cpu_seconds": [2.0] * 3}
    runs[name_of(poor, seeds[0])] = {"scores": [0.0], "cpu_seconds": [CAP]}
    left = [name_of(one, 0) for one in study.in_question(DESIGN, runs, [good, poor, open_still], seeds, "word")]
    assert left == [name_of(good, 0), name_of(open_still, 0)]


def test_a_run_ends_at_the_higher_mark_or_at_the_cap() -> None:
    watched = Watched(HIGH, 3)
    watched.log(1, {"score/mean": HIGH, "kl/k1_per_token": 0.5})
    watched.log(2, {"score/mean": HIGH, "kl/k1_per_token": 0.5})
    with pytest.raises(Watched.Done):
        watched.log(3, {"score/mean": HIGH, "kl/k1_per_token": 0.5})
    assert watched.run["scores"] == [HIGH] * 3
    assert set(watched.run) == {"scores", "cpu_seconds", "kl"}
    late = Watched(HIGH, 3)
    late.run["cpu_seconds"], late.run["scores"] = [CAP], [0.0]
    with pytest.raises(Watched.Done):
        late.log(2, {"score/mean": 0.0})


@pytest.mark.parametrize("design", DESIGNS)
def test_settings_of_a_list_have_names_of_their_own(design: study.Design) -> None:
    for reward, settings in design.lists.items():
        assert len({name_of(one, 0) for one in settings}) == len(settings), reward


@pytest.mark.parametrize("design", DESIGNS)
def test_no_seed_of_a_race_was_searched_on(design: study.Design) -> None:
    assert not set(design.seeds) & {seed for stages in design.stages.values() for stage in stages for seed in stage}


def test_a_score_is_of_as_many_responses_on_both_sides_where_the_design_says_so() -> None:
    equal, older = (design.cell_of("word", LISTS["word"][0]) for design in reversed(DESIGNS))
    for side in ("ours", "theirs"):
        found = [window_of(equal, side, {"n_samples": n}) for n in (4, 6, 8, 12, 16)]  # 8 prompts each
        assert found == [3, 2, 2, 1, 1]
        assert window_of(equal, side, {}) == 3
    assert [window_of(older, side, {"n_samples": 8}) for side in ("ours", "theirs")] == [3, 1]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_page_says_what_the_results_say(design: study.Design) -> None:
    found = score_study.load(design.results)
    start, end = design.place
    written = score_study.DOCS.read_text(encoding="utf-8")
    assert written.split(start)[1].split(end)[0].strip() == study.page(design, found).strip()
    for reward in design.rewards:
        ours = choice(design, found["search"][reward], reward)
        races = found["cells"][design.cell_of(reward, ours).name]["runs"]
        assert [race_name(seed) for seed in design.seeds] == list(races)
        assert all(race["settings"]["ours"] == ours for race in races.values())
