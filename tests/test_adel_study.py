"""ADEL-FL's studies before they train: what plans are worth, and the arms that decide."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from problems import differ

from benchmarks import cells
from benchmarks.reproduce import adel_fl, adel_heterofl, adel_heterofl_report
from benchmarks.reproduce.adel_plans import split, verdict
from fedjax_het import experiment
from fedjax_het.data import from_arrays, load_federated
from fedjax_het.simulation.simulate import simulate

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.fixture
def blank_data(monkeypatch):
    """A few samples of noise: the bound knows nothing of the data."""

    @functools.wraps(load_federated)  # whose options are checked
    def federated(source, partition, **options):
        del options
        x = np.random.default_rng(0).normal(size=(200, *SHAPES[source])).astype(np.float32)
        y = np.arange(200) % 10
        return from_arrays(x, y, x[:10], y[:10], clients=partition, num_classes=10)

    monkeypatch.setattr("fedjax_het.config.load_federated", federated)
    adel_heterofl.problem.cache_clear()
    adel_heterofl.planned.cache_clear()
    yield
    adel_heterofl.problem.cache_clear()
    adel_heterofl.planned.cache_clear()


def plans_of(name):
    config = experiment.plain(experiment.load_config(str(CONFIGS / f"{name}.py")))
    return adel_fl.planned(config["algorithm"], experiment.build_problem(config))


@pytest.mark.parametrize(
    ("name", "excesses"),
    [
        ("adel_mnist_mlp", (0.0481, 0.0320, 0.0320)),
        pytest.param("adel_mnist_cnn2", (0.3547, 0.2458, 0.2458), marks=pytest.mark.slow),
        pytest.param("adel_cifar10_vgg11", (0.1313, 0.1308, 0.1307), marks=pytest.mark.slow),
    ],
)
def test_the_bound_says_what_deadlines_can_add(blank_data, name, excesses):
    """In the published settings nothing: batches alone give the whole gain."""
    found = plans_of(name)
    np.testing.assert_allclose([plan.excess for plan in found.values()], excesses, rtol=0.005)
    assert "CANNOT show" in verdict(found)
    assert split(found).count("deadlines") >= 4


def test_where_many_miss_the_input_layer_deadlines_and_correction_count(blank_data):
    found = adel_heterofl.planned(adel_heterofl.SETTINGS["tight"], 0.1)
    equal, batches, full = found.values()
    assert 1 - full.excess / batches.excess > 0.05
    assert 0.3 < equal.missed[0] < 0.45  # p of the input layer
    assert full.missed.max() > 0.3
    assert "a comparison can show" in verdict(found)
    skewed = adel_heterofl.SETTINGS["tight_skewed"]
    assert skewed._replace(alpha=None) == adel_heterofl.SETTINGS["tight"]


def test_salf_may_have_the_batches_of_the_planner(blank_data):
    """Only the deadlines are then left to tell it from ADEL-FL."""
    setting = adel_heterofl.SETTINGS["wide"]
    _, batches, _ = adel_heterofl.planned(setting, 0.1).values()
    method = adel_heterofl.build(adel_heterofl.PLANNED, setting, 0.1, 0)
    assert method.options["batch_scale"] == pytest.approx(batches.scale)
    assert batches.scale < 0.7
    rules = [
        adel_heterofl.build(f"SALF{rule}", setting, 0.1, 0) for rule in ("", ", mean", ", ipw")
    ]
    assert [method.options["aggregator"] for method in rules] == [None, "mean", "ipw"]


def test_momentum_lasts_from_round_to_round(blank_data, monkeypatch):
    """The second step has 0.9 of the first in it; without, it is that of the second round alone."""
    monkeypatch.setattr(adel_heterofl, "ROUNDS", 4)
    setting = adel_heterofl.Setting(16.0, 8, (1.0, 1.0), 10.0, (8,))
    start = adel_heterofl.problem().model.init(jax.random.key(0))

    def ends(label, rounds, first=start):
        method = adel_heterofl.build(label, setting, 0.1, 0)
        run = simulate(
            method, adel_heterofl.problem(), rounds=rounds, initial=first, execution="masked"
        )
        return run.variables.params["blocks"]

    plain, heavy = (ends(label, 1) for label in ("ADEL-FL", "ADEL-FL, momentum"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, heavy)
    assert differ(ends("ADEL-FL", 2), ends("ADEL-FL, momentum", 2))


def test_the_authors_wait_is_read_from_the_same_runs():
    seen = {
        "step": [0, 1, 2, 3],
        "virtual_s": [0.0, 4.0, 8.0, 12.0],
        "accuracy": [0.1, 0.5, 0.7, 0.9],
    }
    one = {
        "label": "Wait",
        "learning_rate": 0.1,
        "batch_size": 0,
        "curves": [seen],
        "dropped": [0.0],
        "merging": [{}],
    }
    lines = adel_heterofl_report.table([one, {**one, "label": "SALF"}], 12.0, 3).splitlines()[2:]
    found = {line.split(" | ")[0][2:]: line.split(" | ")[2] for line in lines}
    assert found == {
        "Wait": "90.0 ± 0.0",
        "SALF": "90.0 ± 0.0",
        "Wait, authors' clock (1.28 times as slow)": "70.0 ± 0.0",
        "Wait, authors' clock (1.57 times as slow)": "50.0 ± 0.0",
    }


def test_a_best_step_at_the_edge_of_its_grid_is_said(capsys):
    assert cells.edge("SALF", 0.4, (0.1, 0.2, 0.4))
    assert "SALF: 0.4 lies at the edge" in capsys.readouterr().out
    assert not cells.edge("SALF", 0.2, (0.1, 0.2, 0.4))
    assert not cells.edge("SALF", 0.2, (0.2,))
