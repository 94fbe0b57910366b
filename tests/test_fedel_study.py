"""FedEL's study by its plans: end edges, records, costs of the network, and overlaps of masks."""

import numpy as np
import problems
import pytest

from benchmarks.reproduce import fedel, fedel_masks, fedel_table1_plans, fedel_table1_report
from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.fleet import presets
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


@pytest.fixture(scope="module")
def problem():
    base = problems.exits_problem()
    return Problem(base.model, base.data, presets.fedel(8, assignment="cyclic"))


def test_the_end_edge_may_go_by_kernels_alone(problem):
    """A block of which a bias alone trained stays in the window only if any tensor counts."""
    times = tensor_times(problem.model, problem.cost)
    kernels = np.asarray(["kernel" in name for name in times.names])
    assert 0 < kernels.sum() < len(kernels)
    variables = problem.model.init(problems.NOW.key)
    for edge in ("tensor", "kernel"):
        method = build("fedel", problem, **TRAINING, end_edge=edge)
        state = method.init(variables, None)
        plan, state = method.plan(state, variables, problems.situation(problem))
        counted = plan.rows["chosen"] & (kernels if edge == "kernel" else True)
        np.testing.assert_array_equal(state.selected, times.blocks_of(counted))
    with pytest.raises(Exception, match="end_edge"):
        build("fedel", problem, **TRAINING, end_edge="bias")


def test_rounds_record_signs_and_sizes_of_windows(problem):
    run = simulate(
        build("fedel", problem, **TRAINING), problem, rounds=2, execution="masked", eval_every=2
    )
    for row in run.record.metrics[1:]:
        assert 0 <= row["info"]["positive_share"] <= 1
        assert 1 <= row["info"]["tensors_per_window"] <= 6
    shares = fedel_masks.overlaps(problem, TRAINING, (0.0, 0.6, 1.0), rounds=3)
    assert shares[0.6] == 1.0
    assert all(0 <= share <= 1 for share in shares.values())
    norms = {**TRAINING, "probe": {"measure": "gradient"}}
    assert set(fedel_masks.overlaps(problem, norms, (0.6,), rounds=2).values()) == {1.0}


def test_the_network_of_the_study_has_the_pyramid_of_vgg16(monkeypatch):
    """The path to block 1 from the end of the first window, over a slow device's budget.

    VGG16 on an Orin board needs 60 % for the slowest of four types, the network of the published
    runs 87 %.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(800, 14, 14, 1)).astype(np.float32), np.arange(800) % 10
    monkeypatch.setattr(fedel, "_images", lambda: (x, y, x[:20], y[:20]))
    paths = {}
    for net in fedel.NETS:
        text = fedel_table1_plans.pyramid(fedel.setting(0, net), slowdown=4.0)
        here, orin = (line.split()[-2:] for line in text.splitlines()[2:])
        paths[net] = float(here[0])
    assert paths["pyramid"] == pytest.approx(float(orin[0]), abs=0.05)
    assert paths["plain6"] > float(orin[0]) + 0.2
    assert "no_fast" in fedel.ARMS


def test_runs_with_too_few_positive_importances_are_not_valid():
    good, bad = {"positive": [0.9, 0.8]}, {"positive": [0.7, 0.6]}
    assert not fedel_table1_report.invalid([good])
    assert fedel_table1_report.invalid([good, bad])
    assert not fedel_table1_report.invalid([{"accuracy": [0.1]}])


def test_the_runs_of_the_page_had_a_small_probe():
    arms = {label: arm for group in fedel.ARMS.values() for label, arm in group.items()}
    small = {label: fedel.with_small_probe(arm)[1] for label, arm in arms.items()}
    assert small["FedEL"] == small["FedEL, small probe"] == {"probe": {"step": 0.01}}
    assert small["FedEL, exit probe"] == {"probe": {"head": "exit"}}
    assert "probe" not in small["FedAvg"]
