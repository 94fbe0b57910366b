"""A step size that shrinks when the test accuracy no longer grows."""

import pytest
from adel_helpers import adel_problem
from problems import digits_problem

from fedjax_het.algorithms import build
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms.plateau import begin, on_plateau, step


def after(accuracies, patience=10):
    state, scales = begin(), []
    for accuracy in accuracies:
        state = step(state, accuracy, patience)
        scales.append(float(state.scale))
    return scales


def test_eleven_stale_evaluations_shrink_it_once():
    scales = after([0.5] + [0.5] * 11 + [0.4] * 10)
    assert scales[:11] == [1.0] * 11
    assert scales[11] == pytest.approx(0.9)
    assert scales[-1] == pytest.approx(0.9)  # the count began anew
    assert after([0.5] + [0.5] * 22)[-1] == pytest.approx(0.81)


def test_better_means_by_a_margin():
    assert after([0.5] + [0.50004] * 11)[-1] == pytest.approx(0.9)
    assert after([0.5] + [0.5001] * 11, patience=11)[-1] == 1.0


def test_it_scales_any_method_and_resumes(tmp_path):
    problem = digits_problem()
    algorithm = on_plateau(build("fedavg", problem, learning_rate=1e-6), 1, 0.5)
    assert on_plateau(algorithm, None) is algorithm
    whole = simulate(algorithm, problem, rounds=6, checkpoint_every=3)
    scales = [row["info"]["learning_rate_scale"] for row in whole.record.metrics[1:]]
    # Hardly any learning: every second round is one too many.
    assert scales[0] == 1.0
    assert scales[-1] < 0.3
    simulate(algorithm, problem, rounds=3, workdir=tmp_path, checkpoint_every=3)
    rest = simulate(algorithm, problem, rounds=6, workdir=tmp_path, checkpoint_every=3)
    assert [row["info"]["learning_rate_scale"] for row in rest.record.metrics[1:]] == scales


def test_the_preview_is_that_of_the_method_inside():
    algorithm = build("salf", adel_problem(), learning_rate=0.1, rounds=4, total_s=8.0)
    assert on_plateau(algorithm, 1).preview is algorithm.preview is not None
    assert on_plateau(build("fedavg", digits_problem(), learning_rate=0.1), 1).preview is None
