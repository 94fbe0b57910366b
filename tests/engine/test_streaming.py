"""Samples that stay on the host: the same bits, with no more of them on the device than needed."""

import chex
import jax
import numpy as np
import pytest
from problems import digits_problem

from fedjax_het import transforms
from fedjax_het.algorithms import build
from fedjax_het.data import from_arrays
from fedjax_het.data.streaming import part_of
from fedjax_het.engine.engine import make_engine
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

SIZES = (5, 12, 7, 9, 3, 8, 6, 10)
TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def both(problem, algorithm, tmp_path, **options):
    """The same run with all samples on the device, and streamed."""
    runs = []
    for stream in (False, True):
        place = tmp_path / str(stream) if tmp_path else None
        told = {"rounds": 5, "eval_every": 5, "workdir": place, "stream": stream, **options}
        runs.append(simulate(algorithm, problem, **told))
    return runs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavg", {"clients_per_round": 3}),
        ("fedavg", {"clients_per_round": 3, "select": {"name": "oort"}}),
        ("fedpmt", {"clients_per_round": 4}),
        ("fedbuff", {"buffer_size": 2}),
        ("fedasync", {}),
        ("scaffold", {"clients_per_round": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_streamed_samples_give_the_same_bits(name, options, tmp_path):
    problem = digits_problem(SIZES)
    algorithm = build(name, problem, **TRAINING, **options)
    held, streamed = both(problem, algorithm, tmp_path)
    chex.assert_trees_all_equal(held.variables, streamed.variables)
    chex.assert_trees_all_equal(held.state, streamed.state)
    # Wall times and the count of programs are those of a run.
    assert held.record.clients == streamed.record.clients
    assert held.record.metrics[-1]["accuracy"] == streamed.record.metrics[-1]["accuracy"]


@pytest.mark.parametrize("how", [{"execution": "debug"}, {"chunk": 1}, {"chunk": 4}], ids=str)
def test_in_every_execution(how):
    problem = digits_problem(SIZES)
    algorithm = build("fedavg", problem, clients_per_round=3, **TRAINING)
    held, streamed = both(problem, algorithm, None, rounds=2, **how)
    chex.assert_trees_all_equal(held.variables, streamed.variables)


def test_losses_that_a_selection_asks_for(tmp_path):
    problem = digits_problem(SIZES)
    algorithm = transforms.compose(
        build("fedavg", problem, clients_per_round=2, **TRAINING),
        transforms.select.power_of_choice(d=5),
    )
    held, streamed = both(problem, algorithm, tmp_path)
    assert held.record.clients == streamed.record.clients


def test_a_resumed_run_may_change_where_its_samples_are(tmp_path):
    problem = digits_problem(SIZES)
    algorithm = build("fedavg", problem, clients_per_round=3, **TRAINING)
    whole = simulate(algorithm, problem, rounds=4)
    for rounds, stream in ((2, True), (4, False)):
        result = simulate(
            algorithm, problem, rounds=rounds, stream=stream, workdir=tmp_path, checkpoint_every=1
        )
    chex.assert_trees_all_equal(result.variables, whole.variables)


def images(tmp_path, augment):
    """Images in a memory-mapped file, in an order that is not that of the clients."""
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    x = rng.integers(0, 256, (len(owner), 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = rng.integers(0, 4, len(owner))
    return from_arrays(mapped, y, x[:9], y[:9], clients=owner, augment=augment)


@pytest.mark.parametrize("augment", [None, "crop_flip_cutout"])
def test_a_memory_mapped_file_of_images(tmp_path, augment):
    from fedjax_het.fleet import build as build_fleet
    from fedjax_het.models import mlp

    data = images(tmp_path, augment)
    problem = Problem(mlp((8, 8, 3), 4, hidden=(6,)), data, build_fleet("uniform", len(SIZES)))
    algorithm = build("fedavg", problem, clients_per_round=3, **TRAINING)
    held, streamed = both(problem, algorithm, None)
    chex.assert_trees_all_equal(held.variables, streamed.variables)


def test_a_part_holds_the_samples_of_its_clients_and_room_for_others(tmp_path):
    data = images(tmp_path, None)
    part = part_of(data, np.array([1, 4]), 20)
    assert part.x.shape == (20, 8, 8, 3)
    for client in (1, 4):
        place = int(part.start[client]) + np.arange(SIZES[client])
        row, sample = part.rows(jax.numpy.asarray(place))
        np.testing.assert_array_equal(sample, data.client_samples(client))
        np.testing.assert_array_equal(part.x[row], data.x[data.client_samples(client)])
        np.testing.assert_array_equal(part.y[row], data.y[data.client_samples(client)])


def test_programs_have_room_for_the_largest_cohort_and_are_not_compiled_again():
    problem = digits_problem(SIZES)
    algorithm = build("fedavg", problem, clients_per_round=3, **TRAINING)
    engine = make_engine(algorithm, problem, stream=True)
    part = engine.resources.data_of(np.array([4]), 3)
    assert len(part.y) == sum(sorted(SIZES)[-3:])
    assert len(engine.resources.data_of(np.arange(8), 100).y) == sum(SIZES)
    simulate(algorithm, problem, rounds=6, engine=engine, stream=True)
    assert engine.programs == 1
