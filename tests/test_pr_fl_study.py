"""PR-FL's study by its clock: what the author's fleet implies, without training."""

import functools

import chex
import numpy as np
import pytest

from benchmarks.reproduce import pr_fl, pr_fl_figures, pr_fl_setting
from benchmarks.reproduce.pr_fl_clock import Clock, first_recovery, planned, recovery_check
from fedjax_het import algorithms
from fedjax_het.algorithms.prfl import Density, Links, Recovery
from fedjax_het.algorithms.prfl.density import check, no_stops
from fedjax_het.data.federated import from_arrays
from fedjax_het.fleet import presets
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

# Trainings of clients 1 to 10 with the author's FedAsyn (methods/pr_fl.md 10).
SLIDE = np.asarray([10000, 9940, 9878, 9548, 5484, 4517, 2822, 2460, 2453, 1999]) / 10000


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 64)).astype(np.float32), np.arange(200) % 10
    data = from_arrays(x, y, x[:20], y[:20], clients=np.arange(200) // 20, num_classes=10)
    return pr_fl_setting.on_links(mlp((64,), 10, hidden=(64,)), data)


def clock(label, *, merges, **changes):
    every = {name: arm for arms in pr_fl.ARMS.values() for name, arm in arms.items()}
    algorithm = pr_fl.build(every[label], problem(), **changes)
    return planned(algorithm, problem(), merges=merges)


def test_the_authors_participation_follows_from_four_bytes_a_weight():
    """The bytes of the default arms give the slide's vector, those of coo64 do not."""
    dense = clock("FedAsyn of the author", merges=600)
    np.testing.assert_allclose(dense.participation, SLIDE, atol=0.12)
    # A merge takes as long as the server needs for a model: 37.2 MiB at 10 MiB/s, and 0.1 s.
    assert np.median(np.diff(dense.ends_s[50:])) == pytest.approx(3.82, abs=0.1)
    coo = clock("FedAsyn of the author, coo64", merges=600)
    assert coo.participation[-1] > SLIDE[-1] + 0.2
    assert np.median(np.diff(coo.ends_s[50:])) == pytest.approx(18.7, abs=0.2)


def test_the_clock_without_training_is_that_of_a_run():
    algorithm = pr_fl.build(("prfl", {"density": {"interval": 4}}), problem(), recovery=None)
    seen = planned(algorithm, problem(), merges=12, seed=3)
    record = simulate(algorithm, problem(), rounds=12, seed=3, eval_every=12, chunk=1).record
    ends_s = [row["virtual_s"] for row in record.metrics[1:]]
    np.testing.assert_array_equal(seen.ends_s, ends_s)
    trained = np.bincount([row["client"] for row in record.clients], minlength=10)
    np.testing.assert_array_equal(seen.trained, trained)
    np.testing.assert_allclose(seen.density, record.metrics[12]["info"]["densities"], atol=1e-4)
    assert np.any(seen.density != Density().first(10))


def test_fedavg_is_the_method_itself_on_the_authors_links():
    """Only its clock differs, which is that of whole models sent to everyone at once."""
    setting = problem()
    fleet = presets.build(
        "prfl", 10, scale=pr_fl_setting.scale(setting.model), sigma=0.0, flops_per_s=1e9
    )
    setting = Problem(setting.model, setting.data, fleet)
    still = {"server_jitter": 0.0}
    ours = pr_fl.build(("fedavg", {"links": still}), setting)
    nested = {"density": {"start": (1.0,), "lowest": 1.0}, "links": {**still, "sizes": "dense"}}
    whole = pr_fl.build(("nested_mask_sync", nested), setting)
    run = simulate(ours, setting, rounds=2, chunk=1)
    np.testing.assert_allclose(
        [row["virtual_s"] for row in run.record.metrics[1:]],
        planned(whole, setting, merges=2).ends_s,
    )
    assert run.faults == []
    plain = algorithms.build("fedavg", setting, **pr_fl_setting.TRAINING, learning_rate=0.1)
    chex.assert_trees_all_equal(
        run.variables, simulate(plain, setting, rounds=2, chunk=1).variables
    )


def test_it_is_said_beforehand_whether_recovery_can_fire():
    density, recovery = Density(interval=40), Recovery(patience=5)
    assert first_recovery(density, recovery) == 240
    # The automaton itself, which sees a score at every interval and never a better one.
    stops, fired = no_stops(1), []
    for score in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        stops, fire = check(stops, np.asarray([score]), recovery.patience)
        fired.append(bool(fire[0]))
    assert fired.index(True) + 1 == 240 / density.interval

    def of(merges):
        nothing = np.zeros(10)
        return recovery_check(Clock(np.arange(float(merges)), nothing, nothing), density, recovery)

    assert of(189).startswith("recovery CANNOT fire: 189 merges")
    assert "240 merges before the first" in of(189)
    assert "can fire, at most 1 times a client" in of(240)
    assert "CANNOT" in pr_fl.checks(("prfl", pr_fl.CONTROL), problem(), 400.0)
    assert pr_fl.checks(("prfl", {"recovery": None}), problem(), 400.0) is None
    assert pr_fl.checks(("fedavg", {}), problem(), 400.0) is None


def test_every_arm_of_the_study_can_be_built():
    links = {
        label: pr_fl.build(arm, problem(), recovery=None) if arm[0] == "prfl" else None
        for arms in pr_fl.ARMS.values()
        for label, arm in arms.items()
    }
    assert {label for label, method in links.items() if method is None} == {
        *(label for label, arm in pr_fl.METHODS.items() if arm[0] != "prfl"),
        *(label for label, arm in pr_fl.COO64.items() if arm[0] != "prfl"),
    }
    assert Links().sizes == "bitmap"


def test_the_table_has_one_time_axis():
    def run(label, accuracy):
        return {
            "label": label,
            "data": "digits",
            "split": "iid",
            "virtual_s": [0.0, 50.0, 100.0, 150.0],
            "accuracy": accuracy,
            "trained": [4, 2],
            "staleness": 1.0,
        }

    runs = [run("PR-FL", [0.1, 0.9, 0.7, 1.0]), run("FedAsyn of the author", [0.1, 0.1, 0.9, 0.9])]
    head, _, ours, theirs = pr_fl_figures.table(runs, "digits", "iid", 100.0).splitlines()
    assert head.split(" | ")[4:8] == ["over FedAsyn", "at 50 s (%)", "at 100 s (%)", "best (%)"]
    # What comes after 100 s does not count for anybody.
    assert ours.split(" | ")[2:8] == [
        "50 ± 0",
        "50 ± 0",
        "2.00, 2.00",
        "50.0 ± 0.0",
        "56.7 ± 0.0",
        "90.0 ± 0.0",
    ]
    assert theirs.split(" | ")[4] == "1.00, 1.00"
