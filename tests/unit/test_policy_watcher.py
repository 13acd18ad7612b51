"""The watcher: which policy it keeps, when it stops, and that a kill does not make it forget."""

import json
import math
import random

import pytest

from karat.errors import ConfigError
from karat.policy.controllers import FixedKL
from karat.policy.watcher import Watcher, WatchRules


def feed(watcher, rows, start=0):
    saved = []

    def save(path):
        path.mkdir(exist_ok=True)
        (path / "step").write_text(str(step))
        saved.append(step)

    reasons = []
    for step, metrics in enumerate(rows, start):
        reasons.append(watcher.observe(step, metrics, save))
    return saved, reasons


def bound(value, **more):
    return {"validation/lower_bound": value} | more


def test_keeps_the_best(tmp_path):
    watcher = Watcher(WatchRules(), tmp_path)
    saved, reasons = feed(watcher, [bound(0.1), {}, bound(0.3), bound(0.2), bound(math.nan), bound(0.3)])
    assert saved == [0, 2]
    assert reasons == [None] * 6
    assert (watcher.best_step, watcher.best_value) == (2, 0.3)
    assert (watcher.best_path / "step").read_text() == "2"
    assert [row["step"] for row in watcher.history] == [0, 1, 2, 3, 4, 5]


def test_stops_at_the_kl_budget_and_does_not_keep_what_broke_it(tmp_path):
    watcher = Watcher(WatchRules(kl_budget=5.0), tmp_path)
    rows = [bound(v, **{"kl/k1_per_sequence": kl}) for v, kl in ((0.1, 0.0), (0.2, 5.0), (0.9, 5.5))]
    saved, reasons = feed(watcher, rows)
    assert reasons[:2] == [None, None]
    assert reasons[2] == "kl_budget: KL 5.5 nats, budget 5"
    assert saved == [0, 1]
    assert watcher.best_step == 1


def test_stops_when_the_ensemble_disagrees():
    validation = tuple(i / 100 for i in range(101))
    watcher = Watcher(WatchRules(validation_disagreement=validation, disagreement_quantile=0.9))
    rows = [{"validation/disagreement": 0.89}, {"validation/disagreement": 0.91}]
    reasons = feed(watcher, rows)[1]
    assert reasons[0] is None
    assert reasons[1].startswith("disagreement: mean sd 0.91, validation 0.9-quantile 0.9")


def test_stops_where_the_policy_writes_what_nobody_judged():
    rows = [bound(0.1, **{"validation/novel_frac": share}) for share in (0.01, 0.25, 0.3)]
    reasons = feed(Watcher(WatchRules(max_novel_frac=0.25)), rows)[1]
    assert reasons == [None, None, "novelty: 0.3 of the responses are unlike those judged; the limit is 0.25"]
    assert feed(Watcher(WatchRules()), rows)[1] == [None] * 3
    with pytest.raises(ConfigError, match=r"WatchRules\.max_novel_frac: found 1\.5"):
        WatchRules(max_novel_frac=1.5)


def test_patience():
    watcher = Watcher(WatchRules(patience=2))
    reasons = feed(watcher, [bound(1.0), {}, bound(0.5), {}, bound(0.4)])[1]
    assert reasons[:4] == [None] * 4
    assert "has not improved in 2 comparisons (best: 1 at iteration 0)" in reasons[4]
    assert watcher.best_path is None


def test_survives_a_checkpoint():
    rules = WatchRules(patience=2)
    whole, first = Watcher(rules), Watcher(rules)
    rows = [bound(1.0), bound(0.5), bound(math.inf), bound(0.6)]
    feed(whole, rows)
    feed(first, rows[:2])
    second = Watcher(rules)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    feed(second, rows[2:], start=2)
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())
    assert second.stop_reason is not None


def test_refuses_bad_rules():
    with pytest.raises(ConfigError, match="kl_budget: found 0"):
        WatchRules(kl_budget=0.0)
    with pytest.raises(ConfigError, match="patience: found -1"):
        WatchRules(patience=-1)
    with pytest.raises(ConfigError, match=r"disagreement_quantile: found 1\.5"):
        WatchRules(disagreement_quantile=1.5)


def test_each_new_rule_names_its_figures():
    rules = WatchRules(length_limit_sd=2.0, reference_lengths=(8.0, 10.0, 12.0), entropy_floor=0.5, diversity_floor=0.8)
    start = {"validation/length": 10.0, "validation/entropy": 2.0, "validation/diversity": 1.0}
    for metric, fine, wrong, said in (
        ("validation/length", 13.9, 14.1, "length: length drifted by +2.05 sd, limit 2"),
        ("validation/entropy", 1.01, 0.99, "entropy: 0.99, at the start 2, floor 0.5 of it"),
        ("validation/diversity", 0.81, 0.79, "diversity: 0.79, at the start 1, floor 0.8 of it"),
    ):
        reasons = feed(Watcher(rules), [start, start | {metric: fine}, start | {metric: wrong}])[1]
        assert reasons == [None, None, said]


def gao(alpha, beta, n, noise=0.0, seed=0):
    """Looks along R = d(α − β·log d), KL = (i/4)²."""
    draws = random.Random(seed)
    rows = [bound(0.0)]
    for i in range(1, n):
        d = i / 4
        value = d * (alpha - beta * math.log(d)) + noise * draws.gauss(0, 1)
        rows.append(bound(5.0 + value, **{"kl/k1_per_sequence": d * d}))
    return [bound(5.0), *rows[1:]]


def test_the_peak_is_called_after_it_was_passed_and_never_where_there_is_none():
    rules = WatchRules(peak_metric="validation/lower_bound")
    watcher = Watcher(rules)
    reasons = feed(watcher, gao(1.0, 0.8, 24))[1]  # d* = e^{α/β − 1} = 1.284, between the looks at 1.25 and 1.5
    first = next(i for i, reason in enumerate(reasons) if reason)
    assert first == 6  # d = 1.5, and the sixth look of the law
    assert reasons[first].startswith("peak: peak √KL 1.28 (1.28 … 1.28), now 1.5")
    assert feed(Watcher(rules), gao(1.0, -0.2, 24))[1] == [None] * 24
    noisy = feed(Watcher(rules), gao(1.0, 0.8, 24, noise=0.05))[1]
    assert 6 <= next(i for i, reason in enumerate(noisy) if reason) < 14


def test_an_alarm_can_raise_beta_instead_and_gives_up_after_so_many():
    rules = WatchRules(entropy_floor=0.5, on_alarm="raise_kl", kl_factor=3.0, most_raises=2, rest_looks=1)
    watcher = Watcher(rules)
    watcher.kl = FixedKL(0.1)
    look = bound(0.0, **{"validation/entropy": 2.0})
    low = bound(0.0, **{"validation/entropy": 0.1})
    reasons = feed(watcher, [look, low, low, low, low, low])[1]
    assert watcher.kl.coef == pytest.approx(0.9)
    assert [(alarm["step"], alarm["action"]) for alarm in watcher.alarms] == [
        (1, "raise_kl"),
        (3, "raise_kl"),
        (5, "stop"),
    ]
    assert reasons[:5] == [None] * 5
    assert reasons[5].startswith("entropy: ")
    again = Watcher(rules)
    again.load_state_dict(json.loads(json.dumps(watcher.state_dict())))
    assert again.alarms == watcher.alarms


def test_an_alarm_can_ask_for_fresh_labels():
    watcher = Watcher(WatchRules(diversity_floor=0.5, on_alarm="ask"))
    reasons = feed(watcher, [{"validation/diversity": 1.0}, {"validation/diversity": 0.1}])[1]
    assert reasons[1].startswith("fresh labels wanted: diversity: ")
    assert watcher.alarms[0]["action"] == "ask"


def test_a_rule_that_the_untrained_policy_breaks_does_nothing_yet():
    rules = WatchRules(length_limit_sd=1.0, reference_lengths=(9.0, 11.0), on_alarm="raise_kl")
    watcher = Watcher(rules)
    watcher.kl = FixedKL(0.1)
    long = bound(0.0, **{"validation/length": 30.0})
    saved, reasons = feed(watcher, [long])
    assert (saved, reasons, watcher.alarms, watcher.kl.coef) == ([], [None], [], 0.1)
    feed(watcher, [long], start=1)
    assert [alarm["step"] for alarm in watcher.alarms] == [1]
    assert watcher.kl.coef == 0.2


def test_the_new_rules_refuse_what_cannot_be():
    with pytest.raises(ConfigError, match=r"kl_factor: found 1; expected above 1"):
        WatchRules(on_alarm="raise_kl", kl_factor=1.0)
    with pytest.raises(ConfigError, match=r"found no reference_lengths; expected at least two"):
        WatchRules(length_limit_sd=2.0)
    with pytest.raises(ConfigError, match=r"entropy_floor: found 1.5; expected between 0 and 1, or None"):
        WatchRules(entropy_floor=1.5)


def votes(share, n=100, **more):
    return {"validation/panel": share, "validation/panel_votes": float(n)} | more


def test_a_panel_decides_by_the_mean_of_its_last_looks():
    watcher = Watcher(WatchRules(best_metric="validation/panel", best_looks=3))
    shares = [0.5, 0.9, 0.4, 0.6, 0.62, 0.7, 0.5]
    feed(watcher, [votes(share) for share in shares])
    means = [sum(shares[max(0, i - 2) : i + 1]) / min(3, i + 1) for i in range(len(shares))]
    assert watcher.best_step == max(range(len(means)), key=means.__getitem__) == 1
    assert watcher.best_value == pytest.approx(0.7)


def test_a_fall_is_called_when_it_is_more_than_chance():
    rules = WatchRules(best_metric="validation/panel", best_looks=2, panel_fall=2.0)
    rise, fall = [0.5, 0.6, 0.7, 0.7], [0.66, 0.6, 0.5, 0.45]
    reasons = feed(Watcher(rules), [votes(share) for share in rise + fall])[1]
    # 2·√(p̄(1 − p̄)·2/200) is 0.094 and 0.097 where means of two looks have fallen by 0.07 and 0.15
    assert [reason is not None for reason in reasons] == [False] * 6 + [True, True]
    assert reasons[6].startswith("panel: 0.55 of the votes over the last 2 looks, 0.7 before; fell 0.15, limit 0.0968")
    few = feed(Watcher(rules), [votes(share, n=10) for share in rise + fall])[1]
    assert few == [None] * 8
    assert feed(Watcher(rules), [votes(share, n=0) for share in rise])[1] == [None] * 4  # everybody passed


def looking_back(tmp_path=None, **rules):
    return Watcher(WatchRules(best_metric="validation/panel", of_top=0.85, run_steps=40, **rules), tmp_path)


def feed_looks(watcher, shares, start=0, n=96, **more):
    """Votes look by look; what lies on disk after each."""
    there = []

    def save(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "step").write_text(path.name)

    def keep_only(directory, names):
        for other in directory.iterdir():
            if other.name not in names:
                (other / "step").unlink()
                other.rmdir()

    reasons = []
    for step, share in enumerate(shares, start):
        reasons.append(watcher.observe(step, votes(share, n, **more), save, keep_only))
        there.append(sorted(int(path.name) for path in (watcher.directory / "looks").iterdir()))
    return there, reasons


FALLING = [0.5, 0.56, 0.62, 0.66, 0.64, 0.72, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3]
"""Top at look 4; look 5 was lucky."""


def test_later_votes_move_the_best_policy_back_to_one_that_is_still_there(tmp_path):
    watcher = looking_back(tmp_path, candidates=3)
    there, reasons = feed_looks(watcher, FALLING[:6])
    assert watcher.best_step == 5
    later, more = feed_looks(watcher, FALLING[6:], start=6)
    assert watcher.best_step == 4
    assert (watcher.best_path / "step").read_text() == "4"
    assert watcher.looks == later[-1]
    assert max(map(len, there + later)) == 3
    assert set(reasons + more) == {None}
    assert 0.5 < watcher.best_value <= 1
    share = [row["curve/share"] for row in watcher.history]
    assert share[0] == 0.5
    assert watcher.history[-1]["curve/near_top"] == 0.0


def test_the_alarm_speaks_once_the_fall_is_all_but_sure(tmp_path):
    watcher = looking_back(tmp_path, fallen_sure=0.95)
    reasons = feed_looks(watcher, FALLING)[1]
    first = next(i for i, reason in enumerate(reasons) if reason)
    assert 6 <= first <= 9
    assert reasons[first].startswith("panel: with probability ")
    rising = feed_looks(looking_back(tmp_path / "rising", fallen_sure=0.95), [0.5, *sorted(FALLING[1:6])])[1]
    assert rising == [None] * 6


def test_a_look_that_broke_a_rule_is_no_candidate_but_its_votes_count(tmp_path):
    watcher = looking_back(tmp_path, length_limit_sd=1.0, reference_lengths=(9.0, 11.0))
    feed_looks(watcher, [0.5, 0.6, 0.7], **{"validation/length": 10.0})
    before = watcher.best_value
    there, reasons = feed_looks(watcher, [0.9], start=3, **{"validation/length": 30.0})
    assert reasons[0].startswith("length: ")
    assert 3 not in there[-1]
    assert watcher.best_step == 2
    assert watcher.best_value != before


def test_a_run_that_goes_on_from_a_checkpoint_finds_the_policies_of_that_checkpoint(tmp_path):
    whole, killed = looking_back(tmp_path / "whole", candidates=2), looking_back(tmp_path / "killed", candidates=2)
    feed_looks(whole, FALLING)
    feed_looks(killed, FALLING[:6])
    state = json.loads(json.dumps(killed.state_dict(), allow_nan=False))
    lost, _ = feed_looks(killed, FALLING[6:10], start=6)  # undone by a kill
    assert all(set(state["looks"]) <= set(there) for there in lost)
    assert any(set(killed.looks) - set(state["looks"]) for _ in lost)  # or nothing would have been removed
    again = looking_back(tmp_path / "killed", candidates=2)
    again.load_state_dict(state)
    feed_looks(again, FALLING[6:], start=6)
    assert json.dumps(again.state_dict()) == json.dumps(whole.state_dict())
    assert (again.best_path / "step").read_text() == (whole.best_path / "step").read_text()


def test_a_curve_says_nothing_where_nobody_voted():
    watcher = looking_back(None, fallen_sure=0.9)
    reasons = feed(watcher, [votes(0.5), {}, votes(0.6, n=0)])[1]
    assert reasons == [None] * 3
    assert (watcher.best_step, watcher.best_path) == (0, None)
    with pytest.raises(ConfigError, match=r"WatchRules\.of_top: found 1\.5; expected between 0 and 1 or None"):
        WatchRules(of_top=1.5)
    with pytest.raises(ConfigError, match=r"WatchRules\.of_top: found no run_steps"):
        WatchRules(of_top=0.9)
    with pytest.raises(ConfigError, match=r"WatchRules\.candidates: found 0"):
        WatchRules(candidates=0)
