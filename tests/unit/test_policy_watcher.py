"""The watcher: which policy it keeps, when it stops, and that a kill does not make it forget."""

import json
import math

import pytest

from karat.errors import ConfigError
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
