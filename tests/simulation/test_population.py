"""What surrounds the training does nothing client by client for those who do not take part."""

import json
import os
import sys

import numpy as np
import pytest

import fedjax_het
from fedjax_het import algorithms, fleet
from fedjax_het.data import from_arrays, iid, natural, quantity_skew, shards
from fedjax_het.models import build
from fedjax_het.problem import Problem
from fedjax_het.report import RunRecord
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms import select

COHORT, FEW, MANY = 3, 100, 4000


PACKAGE = os.path.dirname(fedjax_het.__file__)


def calls(work):
    """Number of calls of and in the package's functions while `work` runs."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def samples(clients):
    rng = np.random.default_rng(0)
    n = 2 * clients
    x, y = rng.random((n, 4), np.float32), rng.integers(0, 3, n)
    return {"x": x, "y": y, "test_x": x[:9], "test_y": y[:9]}


def owners(clients):
    return np.random.default_rng(1).permutation(np.repeat(np.arange(clients), 2))


@pytest.mark.parametrize(
    "make",
    [
        owners,
        iid,
        shards,
        lambda n: natural(owners(n)),
        lambda n: quantity_skew(n, 1.0),
    ],
    ids=["owners", "iid", "shards", "natural", "quantity_skew"],
)
def test_data_are_made_without_a_call_for_each_client(make):
    counts = []
    for n in (FEW, MANY):
        given = {**samples(n), "clients": make(n)}
        counts.append(calls(lambda given=given: from_arrays(**given)))
    assert abs(counts[1] - counts[0]) < (MANY - FEW) / 4, counts


METHODS = {
    "fedavg": algorithms.fedavg,
    "deadline": lambda problem, **o: algorithms.drop_stragglers(problem, deadline_s=1.0, **o),
    "fedbuff": lambda problem, **o: algorithms.fedbuff(problem, buffer_size=2, **o),
    "fedasync": algorithms.fedasync,
    "oort": lambda problem, **o: select.oort()(algorithms.fedavg(problem, **o)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_takes_as_many_calls_among_many_clients_as_among_few(name, tmp_path):
    """Method, run, evaluations, record and reading it back; each for the second time."""

    def run(clients, place):
        data = from_arrays(**samples(clients), clients=owners(clients), num_classes=3)
        speed = np.random.default_rng(2).uniform(1e6, 2e6, clients)
        model = build("mlp", (4,), 3, hidden=(3,))
        problem = Problem(model, data, fleet.Fleet(speed, groups=np.arange(clients) % 3))
        training = {"learning_rate": 0.1, "batch_size": 2, "clients_per_round": COHORT}
        method = METHODS[name](problem, **training)
        result = simulate(method, problem, rounds=3, workdir=place)
        assert RunRecord.load(place) == result.record

    counts = []
    for n in (FEW, MANY):
        run(n, tmp_path / f"{n}")
        counts.append(calls(lambda n=n: run(n, tmp_path / f"{n} again")))
        first, second = ((tmp_path / f"{n}{end}" / "population.npz") for end in ("", " again"))
        assert first.read_bytes() == second.read_bytes()
    assert abs(counts[1] - counts[0]) < (MANY - FEW) / 4, counts
    told = json.loads((tmp_path / f"{MANY}" / "summary.json").read_text())
    assert told["num_clients"] == MANY
    held = RunRecord.load(tmp_path / f"{MANY}").population
    assert held.sizes.tolist() == [2] * MANY
    assert held.device_groups.tolist() == [k % 3 for k in range(MANY)]
    y, owner = samples(MANY)["y"], owners(MANY)
    wanted = np.zeros((MANY, 3), int)
    np.add.at(wanted, (owner, y), 1)
    np.testing.assert_array_equal(held.label_counts, wanted)
