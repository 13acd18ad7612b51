"""The second design of samples to the peer's score: what is run, what is chosen, what counts, and what our program is told."""

from __future__ import annotations

from bench import fewer_samples_second as study
from bench.fewer_samples_second import FIRST, LIST, OWN_CRITIC, SEARCH, SEEDS, choice, held, missing, name_of
from bench.ours.ppo import ppo_config

MARK = 5.0


def scores(samples: int | None) -> list[float]:
    """Of 16 samples an iteration, whose last 96 first have the mark after so many."""
    return [0.0] * 20 if samples is None else [0.0] * (samples // 16 - 6) + [MARK] * 6


def test_a_miss_on_one_seed_costs_the_choice_and_no_run_is_made_twice() -> None:
    runs, made = {}, []
    best, second = LIST[3], LIST[1]
    while left := missing(runs):
        one, seed = left[0]
        samples: int | None = 112 if one == best else 128 if one == second else 160
        if one == best and seed == SEARCH[1]:
            samples = None
        runs[name_of(one, seed)] = {"scores": scores(samples)}
        made.append((one, seed))
        assert (choice(runs, MARK) is None) == bool(missing(runs))
    assert made == [(one, seed) for seed in SEARCH for one in LIST]
    assert choice(runs, MARK) == second


def race(ours: int | None, theirs: int) -> dict:
    """Ours has the mark after so many samples, TRL first after so many of its 320."""
    peer = [0.0] * (theirs // 32 - 3) + [MARK] * 3 + [MARK] * (10 - theirs // 32)
    return {"scores": scores(ours), "theirs": peer, "mark": MARK, "setting": dict(FIRST), "machine": {"processor": "p"}}


def test_held_needs_fewer_samples_than_the_peer_first_has_it_in_on_every_seed() -> None:
    def races(last: dict) -> dict:
        return {str(seed): race(160, 320) for seed in SEEDS[:-1]} | {str(SEEDS[-1]): last}

    assert held(races(race(304, 320)))
    assert not held(races(race(320, 320)))
    assert not held(races(race(None, 320)))
    assert not held(races(race(256, 192)))  # the peer had it sooner than at its end


def test_the_page_says_what_was_raced_and_what_was_not_reached() -> None:
    made = {str(seed): race(160, 320) for seed in SEEDS}
    made |= {"0": race(160, 320), "1": race(None, 288), "2": race(112, 320)}
    lines = study.races_table(made).splitlines()
    assert (
        lines[2] == "| 9, 10, 11 (fresh) | 5.00, 5.00, 5.00 | 160, 160, 160 | 320, 320, 320 | 5.00, 5.00, 5.00 | yes |"
    )
    assert "160, –, 112 | 320, 288, 320" in lines[3]
    assert lines[3].endswith("| **no** |")
    runs = {
        name_of(one, seed): {"scores": scores(160), "machine": {"processor": "p"}}
        for one in LIST
        for seed in (310, 311)
    }
    text = study.page({"search": runs, "races": made}, MARK)
    assert "a critic of its own, values not clipped | 2 | 0 | 160, 160 |" in text
    assert "10 runs of the search" in text


def test_our_program_takes_the_critic_the_clip_of_values_the_limit_and_lambda() -> None:
    work = {"n_prompts": 8, "max_new_tokens": 48, "kl_coef": 0.05, "adam_eps": 1e-8, "n_iterations": 20}
    plain = ppo_config({**work, **FIRST})
    assert (plain.value.critic, plain.value.clip_range) == ("shared", 0.2)
    assert (plain.update.max_step_kl, plain.update.gae_lambda) == (None, 0.95)
    own = ppo_config({**work, **OWN_CRITIC, "max_step_kl": 0.02, "gae_lambda": 0.9})
    assert (own.value.critic, own.value.clip_range) == ("separate", None)
    assert (own.update.max_step_kl, own.update.gae_lambda) == (0.02, 0.9)
