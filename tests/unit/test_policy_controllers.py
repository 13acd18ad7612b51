"""KL controllers: OpenAI's constants by hand, against the loop, and across a checkpoint."""

import json

import pytest

from karat.errors import ConfigError, InputError
from karat.policy.controllers import AdaptiveKL, FixedKL
from reference import ppo_loops


def test_defaults_are_openais_and_one_step_by_hand():
    controller = AdaptiveKL()
    assert (controller.coef, controller.target, controller.horizon) == (0.15, 6.0, 10_000)
    controller.update(12.0, 512)  # error 1 clipped to 0.2: ×(1 + 0.2·512/10000)
    assert controller.coef == pytest.approx(0.15 * 1.01024)
    controller.update(5.4, 1000)  # error −0.1
    assert controller.coef == pytest.approx(0.15 * 1.01024 * 0.99)


def test_equals_the_loop_and_survives_a_checkpoint():
    kls = [0.1, 3.0, 5.9, 6.1, 7.5, 40.0, -2.0]
    controller = AdaptiveKL(0.2, target=5.0, horizon=4000)
    for kl in kls[:4]:
        controller.update(kl, 64)
    resumed = AdaptiveKL(9.0, target=5.0, horizon=4000)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    for kl in kls[4:]:
        resumed.update(kl, 64)
    assert resumed.coef == pytest.approx(ppo_loops.adaptive_beta(0.2, kls, 64, 5.0, 4000), rel=1e-12)


def test_fixed_stays():
    controller = FixedKL(0.05)
    controller.update(100.0, 64)
    assert controller.coef == 0.05
    other = FixedKL(1.0)
    other.load_state_dict(controller.state_dict())
    assert other.coef == 0.05
    assert FixedKL(0.0).coef == 0.0  # no KL at all is allowed, and a fault of the demo


def test_refuses_bad_input():
    with pytest.raises(ConfigError, match=r"coef=-0\.1"):
        FixedKL(-0.1)
    with pytest.raises(ConfigError, match="target=0"):
        AdaptiveKL(target=0.0)
    with pytest.raises(InputError, match="KL=nan"):
        AdaptiveKL().update(float("nan"), 4)
    with pytest.raises(ConfigError, match="horizon above 20"):
        AdaptiveKL(horizon=10).update(0.0, 100)
