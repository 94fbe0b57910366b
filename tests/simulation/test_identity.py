"""A work directory continues only the run that it holds."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from problems import digits, digits_problem, fleet

import fedjax_het as fh
from fedjax_het.algorithms import build, fedavg
from fedjax_het.algorithms.describing import describe
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import Dense
from fedjax_het.models.structure import structure
from fedjax_het.problem import Problem
from fedjax_het.simulation import identity
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms import on_plateau

TRAINING = {"batch_size": 4, "local_steps": 1, "clients_per_round": 2}
PROBLEM = digits_problem(hidden=(8,))


def method(**options):
    return fedavg(PROBLEM, **{"learning_rate": 0.1, **TRAINING, **options})


class Layer(nn.Module):
    act: str = "relu"
    slope: float = 0.1

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(8)(x)
        return nn.leaky_relu(x, self.slope) if self.act == "leaky" else getattr(nn, self.act)(x)


def network(first="fc1", **layer):
    blocks = (flax_block(first, Layer(**layer)), flax_block("fc2", Dense(10)))
    return BlockModel("net", blocks, (64,), 10)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """The directory of a run of two rounds, to be copied."""
    workdir = tmp_path_factory.mktemp("held")
    simulate(method(), PROBLEM, rounds=2, workdir=workdir, checkpoint_every=1, chunk=1)
    return workdir


@pytest.fixture
def workdir(held, tmp_path):
    return shutil.copytree(held, tmp_path / "run")


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(
        identity.logging, "warning", lambda text, *values: said.append(text % values)
    )
    return said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.001}, "options.learning_rate: 0.1 -> 0.001"),
        ({"momentum": 0.9}, "options.momentum: 0.0 -> 0.9"),
        ({"client_optimizer": "adam"}, "options.client_optimizer: 'sgd' -> 'adam'"),
        ({"schedule": "cosine"}, "options.schedule: 'constant' -> 'cosine'"),
        ({"schedule": lambda t: 1.0}, "options.schedule: 'constant' -> 'a function of the round"),
        (
            {"learning_rate": None, "client_optimizer": optax.sgd(0.1)},
            "options.client_optimizer: 'sgd' -> 'optax transformation ",
        ),
    ],
)
def test_other_options_of_the_method_are_refused_by_name(workdir, options, words):
    with pytest.raises(InputError) as caught:
        simulate(method(**options), PROBLEM, rounds=3, workdir=workdir, chunk=1)
    assert words in str(caught.value)


def test_another_transformation_of_the_method_is_refused(workdir):
    with pytest.raises(InputError, match=r"options.on_plateau: None -> \[3, 0.9\]"):
        simulate(on_plateau(method(), 3), PROBLEM, rounds=3, workdir=workdir, chunk=1)


def test_another_network_of_the_same_name_and_sizes_is_refused(tmp_path):
    run = {"rounds": 1, "workdir": tmp_path, "chunk": 1}
    for act in ("relu", "tanh"):
        problem = Problem(network(act=act), digits(), fleet(8))
        algorithm = fedavg(problem, learning_rate=0.1, **TRAINING)
        if act == "relu":
            simulate(algorithm, problem, **run)
    with pytest.raises(InputError, match=r"operations\.max: 1 -> None.*tanh: None -> 1"):
        simulate(algorithm, problem, **run)


def test_a_directory_without_options_is_refused(workdir):
    config = json.loads((workdir / "config.json").read_text())
    for name in ("options", "network"):
        del config["identity"][name]
    (workdir / "config.json").write_text(json.dumps(config))
    words = "with which options and network it was made, as an earlier version.*new work directory"
    with pytest.raises(InputError, match=words):
        simulate(method(), PROBLEM, rounds=3, workdir=workdir, chunk=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk": 2},
        {"chunk": 1, "devices": 2},
        {"chunk": 1, "execution": "debug"},
        {"chunk": 1, "max_routes": 2, "convolution": "tuned"},
    ],
)
def test_the_machine_may_change_with_a_warning(workdir, changes, warnings):
    result = simulate(method(), PROBLEM, rounds=3, workdir=workdir, checkpoint_every=1, **changes)
    assert [row["step"] for row in result.record.metrics] == [0, 1, 2, 3]
    (warning,) = warnings
    for name, value in changes.items():
        assert (f"{name}: " in warning and f"-> {value!r}" in warning) or (name, value) == (
            "chunk",
            1,
        )
    assert "last bits" in warning
    config = json.loads((workdir / "config.json").read_text())
    assert config["identity"]["machine"]["chunk"] == changes["chunk"]


def test_the_times_of_evaluations_may_change(workdir, tmp_path, warnings):
    """Without a word, unless plans may depend on accuracies."""
    options = {"checkpoint_every": 1, "chunk": 1, "eval_every": 2}
    resumed = simulate(method(), PROBLEM, rounds=4, workdir=workdir, **options)
    whole = simulate(method(), PROBLEM, rounds=4, chunk=1)
    assert warnings == []
    for one, other in zip(*map(jax.tree.leaves, (resumed.variables, whole.variables)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in resumed.record.metrics if "accuracy" in row] == [0, 1, 2, 4]
    other = on_plateau(method(), 3)
    for rounds, every in ((1, 1), (2, 2)):
        run = {**options, "rounds": rounds, "eval_every": every}
        simulate(other, PROBLEM, workdir=tmp_path / "plateau", **run)
    assert ["eval_every: 1 -> 2" in warning for warning in warnings] == [True]


@pytest.mark.parametrize(
    "other",
    [
        network(act="tanh"),
        network("fc"),
        network(act="leaky", slope=0.2),
        with_exits(network(act="leaky")),
        BlockModel("net", network(act="leaky").blocks[:1], (64,), 8),
    ],
)
def test_structures_tell_networks_apart(other):
    one = structure(network(act="leaky"))
    assert one == structure(network(act="leaky")) == jsonable(one)
    assert structure(other) != one


def test_descriptions_are_json_and_equal_only_for_equal_options():
    def scaled(factor):
        return lambda x: factor * x

    every = [
        1,
        1.5,
        float("inf"),
        "text",
        (1, 2),
        {"a": np.arange(3)},
        np.zeros(100),
        np.ones(100),
        optax.sgd(0.1),
        optax.sgd(0.2),
        optax.adam(optax.cosine_decay_schedule(0.1, 10)),
        scaled(2.0),
        scaled(3.0),
        lambda x: x + 1.0,
        fh.algorithms.fedavg,
    ]
    told = [json.dumps(describe(value), allow_nan=False) for value in every]
    assert len(set(told)) == len(every)
    assert describe([1, 2]) == describe((1, 2)) == describe(np.asarray([1, 2]))
    assert describe(scaled(2.0)) == describe(scaled(2.0))
    assert describe(optax.sgd(0.1)) == describe(optax.sgd(0.1))


def test_functions_of_the_round_are_described_by_their_values():
    table = [1.0, 0.5, 0.25]
    one, same, other = (
        build("fedavg", PROBLEM, learning_rate=0.1, schedule=schedule).options["schedule"]
        for schedule in (lambda t: table[t], lambda t: 0.5**t / (t < 3), lambda t: 1.0)
    )
    assert one == same != other
    assert one.startswith("a function of the round (1, 0.5, 0.25 ...)")


def test_the_options_of_a_method_are_those_of_its_factory_with_defaults():
    options = build("dtfl", with_heads(), learning_rate=0.1, scheduler={"ema": 0.5}).options
    assert options["scheduler"]["ema"] == 0.5
    assert options["server_opt_reset"] == "round"
    assert (options["momentum"], options["client_optimizer"]) == (0.0, "sgd")
    assert "problem" not in options
    assert build("fedyogi", PROBLEM, learning_rate=0.1).options["tau"] == 1e-3
    assert simulate(method(), PROBLEM, rounds=1).record.config["identity"]["options"] == (
        method().options
    )


def with_heads():
    return Problem(with_exits(PROBLEM.model), PROBLEM.data, PROBLEM.fleet)


def test_differences_are_named_in_a_line_that_can_be_read():
    old = {"data": {"rows": 3, "name": "x" * 10_000}, **{f"k{i}": i for i in range(20)}}
    assert identity.differences({"data": {"rows": 3}}, {"data": {"rows": 4}}) == "data.rows: 3 -> 4"
    text = identity.differences(old, {})
    assert text.startswith("data: {'name': 'xxxxxxxxx")
    assert ", 'rows': 3} -> None, k0: 0 -> None, " in text
    assert len(text) < 400
    assert text.endswith(", and 13 more")
    assert len(identity.differences({"k" * 10_000: 1}, {})) < 200
