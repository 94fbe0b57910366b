"""Schedules of the step size, against optax and by hand."""

import numpy as np
import optax
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.local.schedules import StepSchedule

ROUNDS = np.arange(30)
T0, F = 8.0, 0.2


def factors(shape, *, decay_rounds=T0, decay_factor=F, warmup_rounds=0):
    schedule = StepSchedule(shape, decay_rounds, decay_factor, warmup_rounds)
    return np.asarray([schedule.factor(int(t)) for t in ROUNDS])


def tabulated(schedule):
    return np.asarray([float(schedule(int(t))) for t in ROUNDS])


OPTAX = {
    "constant": optax.constant_schedule(1.0),
    "step": optax.exponential_decay(1.0, 8, F, staircase=True),
    "exponential": optax.exponential_decay(1.0, 8, F),
    "cosine": optax.cosine_decay_schedule(1.0, 8, alpha=F),
}


@pytest.mark.parametrize("shape", OPTAX)
def test_factors_are_those_of_optax(shape):
    np.testing.assert_allclose(factors(shape), tabulated(OPTAX[shape]), rtol=2e-6)


def test_factors_by_hand():
    np.testing.assert_array_equal(factors("inverse"), 1 / (1 + ROUNDS / T0))
    assert factors("step", decay_rounds=2.5)[[0, 2, 3, 4, 5]].tolist() == [1, 1, F, F, F**2]
    assert factors("cosine")[[0, 4, 8, 20]] == pytest.approx([1.0, (1 + F) / 2, F, F])
    assert factors("exponential")[[0, 4, 8]] == pytest.approx([1.0, F**0.5, F])
    assert np.all(factors("cosine", decay_factor=0.0)[8:] == 0)


@pytest.mark.parametrize("shape", [*OPTAX, "inverse", lambda t: 3.0 - 0.1 * t])
def test_a_warm_up_rises_linearly_and_the_schedule_begins_after_it(shape):
    warm, plain = factors(shape, warmup_rounds=4), factors(shape)
    assert warm[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    np.testing.assert_array_equal(warm[4:], plain[:-4])


def test_a_warm_up_is_optax_s():
    rise = optax.linear_schedule(0.2, 1.0, 4)
    joined = optax.join_schedules([rise, OPTAX["cosine"]], [4])
    np.testing.assert_allclose(factors("cosine", warmup_rounds=4), tabulated(joined), rtol=2e-6)


def test_a_function_may_be_an_optax_schedule():
    np.testing.assert_allclose(factors(OPTAX["cosine"]), factors("cosine"), rtol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_a_factor_that_is_not_usable_is_named_with_its_round(bad):
    schedule = StepSchedule(lambda t: bad if t == 7 else 1.0, 50.0, 0.1, 0)
    assert schedule.factor(6) == 1.0
    with pytest.raises(InputError, match=rf"schedule\(7\) = {bad}.*at least 0; .*round 7"):
        schedule.factor(7)
