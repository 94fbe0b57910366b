"""The eight works of the comparison, recorded from runs of this library.

(a) the CIFAR-10 benchmark of pfl-research, (b) the LEAF CNN on FEMNIST, (c) a thousand small
clients, (d) ResNet-20 with group norm on CIFAR-10, (e) as (b) on a fleet of unequal devices, each
of which trains as many of the last blocks as it can afford (FedPMT), (f) as (b) with a third of the
clients at each of three widths (HeteroFL), (g) LEAF's character LSTM and (h) a small transformer on
Shakespeare's plays by role.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.peers.nets import layers
from benchmarks.peers.work import Work
from fedjax_het import models
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Report, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import DeviceData, Pipeline, gather, prepare
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.partition import iid
from fedjax_het.data.sources import RawData, load
from fedjax_het.data.sources.text import ROLES_VOCABULARY
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler
from fedjax_het.simulation.simulate import simulate

SEED = 0
_FEMNIST_BATCH = 20
_TEXT_BATCH = 10
# Compute capacities of the mixed fleet: the FLOP shares of the last 1, 2, 3 of the CNN's 4 layers,
# and the full model, in equal parts.
_CAPACITY = (0.35, 0.40, 0.72, 1.0)
# Shares of the hidden units in the work with sub-networks by width.
_RATES = (1.0, 0.5, 0.25)


class Setting(NamedTuple):
    """A work before it is recorded.

    Attributes:
      title: for the tables.
      network: name in `nets.layers`.
      problem: model, data and fleet.
      method: makes the algorithm from the problem and training options.
      training: those options, and those of the method.
      block_rounds: rounds of a block; the first one warms up.
      exact: whether equal arithmetic must give equal weights; not with dropout.
    """

    title: str
    network: str
    problem: Problem
    method: Callable[..., Algorithm]
    training: dict[str, Any]
    block_rounds: int
    exact: bool = True

    @property
    def options(self) -> TrainingOptions:
        """The parsed training options."""
        known = {field.name for field in dataclasses.fields(TrainingOptions)}
        return TrainingOptions.parse({k: v for k, v in self.training.items() if k in known})

    def algorithm(self) -> Algorithm:
        """The method on the problem; only the complete model is evaluated."""
        return self.method(self.problem, **self.training)._replace(submodels=None)


def _problem(network: str, data: FederatedData, **options: Any) -> Problem:
    shapes = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    if network == "digits_mlp":
        model = mlp(**shapes, hidden=(128, 64))
    else:
        model = models.build(network, **shapes, **options)
    return Problem(model, data, build_fleet("uniform", data.num_clients))


def _federated(raw: RawData, clients: Any, tests: int) -> FederatedData:
    """A data set with the first `tests` test samples, as evaluation is not what is compared."""
    return from_arrays(
        raw.x,
        raw.y,
        raw.test_x[:tests],
        raw.test_y[:tests],
        clients=clients,
        num_classes=raw.num_classes,
        name=raw.name,
        normalise=raw.normalise,
        seed=SEED,
    )


def _natural(raw: RawData, batch: int, tests: int) -> FederatedData:
    """A data set by its own clients, each with a whole number of batches."""
    assert raw.clients is not None
    held = [np.flatnonzero(raw.clients == client) for client in np.unique(raw.clients)]
    whole = [rows[: len(rows) // batch * batch] for rows in held]
    return _federated(raw, [rows for rows in whole if len(rows)], tests)


def _femnist() -> FederatedData:
    """The writers of the subset."""
    return _natural(load("femnist"), _FEMNIST_BATCH, 2000)


def _plays() -> RawData:
    """Shakespeare's plays in windows of 80; with LEAF's number of symbols, one of them not used."""
    return load("shakespeare", vocabulary=ROLES_VOCABULARY + "}")


def _digits(clients: int, each: int) -> FederatedData:
    """Noisy copies of scikit-learn's 8x8 digits, `each` to a client."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng(SEED)
    test = slice(0, 360)
    source = rng.integers(360, len(x), clients * each)
    noisy = x[source] + 0.1 * rng.standard_normal((clients * each, x.shape[1]), np.float32)
    owner = np.repeat(np.arange(clients), each)
    return from_arrays(noisy, y[source], x[test], y[test], clients=owner, num_classes=10)


def pfl_cifar() -> Setting:
    """(a) 1,000 users of 50 samples, IID; 50 a round, one epoch of batches of 10; with dropout."""
    problem = _problem("pfl_cnn", _federated(load("cifar10"), iid(1000), 2000))
    training = {"learning_rate": 0.1, "batch_size": 10, "clients_per_round": 50}
    title = "pfl CNN, CIFAR-10, 50 x 50 samples"
    return Setting(title, "pfl_cnn", problem, fedavg, training, 3, exact=False)


_FEMNIST_TRAINING = {
    "learning_rate": 0.05,
    "batch_size": _FEMNIST_BATCH,
    "clients_per_round": 10,
}


def leaf_femnist() -> Setting:
    """(b) 10 writers a round, one epoch, batches of 20."""
    problem = _problem("leaf_cnn", _femnist())
    title = "LEAF CNN, FEMNIST, 10 writers"
    return Setting(title, "leaf_cnn", problem, fedavg, _FEMNIST_TRAINING, 5)


def many_small() -> Setting:
    """(c) 1,000 clients of 20 digits, all in every round, one epoch, batches of 10."""
    problem = _problem("digits_mlp", _digits(1000, 20))
    training = {"learning_rate": 0.3, "batch_size": 10}
    return Setting("digits MLP, 1,000 clients", "digits_mlp", problem, fedavg, training, 3)


def resnet_cifar() -> Setting:
    """(d) 100 clients, 5 a round, 5 steps of batches of 20."""
    problem = _problem("resnet20", _federated(load("cifar10"), iid(100), 1000))
    training = {
        "learning_rate": 0.1,
        "batch_size": 20,
        "local_steps": 5,
        "clients_per_round": 5,
    }
    return Setting("ResNet-20-GN, CIFAR-10, 5 clients", "resnet20", problem, fedavg, training, 1)


def mixed_femnist() -> Setting:
    """(e) As (b), but a quarter of the devices each can afford the last 1, 2, 3 or all layers."""
    problem = _problem("leaf_cnn", _femnist())
    capacity = np.resize(_CAPACITY, problem.num_clients).tolist()
    training = {**_FEMNIST_TRAINING, "capacity": capacity}
    title = "FedPMT on a mixed fleet, LEAF CNN, FEMNIST"
    return Setting(title, "leaf_cnn", problem, fedpmt, training, 5)


def widths_femnist() -> Setting:
    """(f) As (b), but a third of the clients each train all, 1/2 and 1/4 of the hidden units."""
    problem = _problem("leaf_cnn", _femnist())
    levels = np.resize(np.arange(len(_RATES)), problem.num_clients).tolist()
    cut = {"rates": _RATES, "levels": levels, "scaler": False, "masked_loss": False}
    title = "HeteroFL at three widths, LEAF CNN, FEMNIST"
    return Setting(title, "leaf_cnn", problem, heterofl, {**_FEMNIST_TRAINING, **cut}, 5)


_TEXT_TRAINING = {"batch_size": _TEXT_BATCH, "clients_per_round": 10}


def leaf_shakespeare() -> Setting:
    """(g) 10 roles a round, one epoch, batches of 10; the symbol after each window of 80."""
    raw = _plays()
    ends = dataclasses.replace(raw, y=raw.y[:, -1], test_y=raw.test_y[:, -1])
    problem = _problem("char_lstm", _natural(ends, _TEXT_BATCH, 1000), predict="last")
    title = "LEAF LSTM, Shakespeare, 10 roles"
    training = {**_TEXT_TRAINING, "learning_rate": 0.8}
    return Setting(title, "char_lstm", problem, fedavg, training, 1)


def transformer_shakespeare() -> Setting:
    """(h) As (g), but every next symbol is predicted, by a transformer of 4 layers of width 64."""
    problem = _problem("transformer", _natural(_plays(), _TEXT_BATCH, 1000))
    title = "transformer, Shakespeare, 10 roles"
    training = {**_TEXT_TRAINING, "learning_rate": 0.3}
    return Setting(title, "transformer", problem, fedavg, training, 3)


SETTINGS: dict[str, Callable[[], Setting]] = {
    "a": pfl_cifar,
    "b": leaf_femnist,
    "c": many_small,
    "d": resnet_cifar,
    "e": mixed_femnist,
    "f": widths_femnist,
    "g": leaf_shakespeare,
    "h": transformer_shakespeare,
}


class _NoEvaluation:
    """Stands in for the evaluator where the model does not matter."""

    def __init__(self) -> None:
        self.compiler = Compiler()

    def mean(self, models: Sequence[Variables], target: str) -> dict[str, Any]:
        del models
        return {target: 0.0}


def record(setting: Setting, folder: Path, blocks: int) -> Work:
    """Runs the simulation without training, writes down who would see what, and saves the work.

    Args:
      setting: what to record.
      folder: where to.
      blocks: measured blocks.
    """
    problem, options = setting.problem, setting.options
    ends = tuple((b + 1) * setting.block_rounds for b in range(blocks + 1))
    sizes = problem.data.sizes
    most = int(np.max(options.steps(sizes)))
    width = min(options.batch_size, int(np.max(sizes)))
    seen: list[Report] = []

    def rows_only(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        del route
        ids = jnp.arange(len(problem.data.x), dtype=jnp.int32)
        numbered = dataclasses.replace(data, x=ids)
        key, _ = jax.random.split(task.key)

        def batch(step: jax.Array) -> jax.Array:
            drawn = gather(numbered, Pipeline(), task.client, step, task.batch, width, key)
            return jnp.where((drawn.weight > 0) & (step < task.steps), drawn.x, -1)

        rows = jax.vmap(batch)(jnp.arange(most, dtype=jnp.int32))
        # No constants: those of several clients side by side are summed into a wrong buffer by XLA
        # on a CPU (JAX 0.10.2).
        still = jax.tree.map(lambda a: 0.0 * a, start.params)
        return ClientResult(still, start.stats, jnp.float32(0), jnp.int32(0), info=rows)

    def note(state: Any, variables: Variables, report: Report) -> Any:
        seen.append(report)
        return state, variables, {}

    recorder = setting.algorithm()._replace(local=rows_only, observe=note)
    evaluator: Any = _NoEvaluation()
    # "masked": a route leaves leaves out of a delta, and here nobody has one.
    options_of_run: dict[str, Any] = {"rounds": ends[-1], "seed": SEED, "execution": "masked"}
    result = simulate(recorder, problem, evaluator=evaluator, **options_of_run)
    batches = np.stack([report.client_info for report in seen])
    used, places = np.unique(batches[batches >= 0], return_inverse=True)
    rows = np.full(batches.shape, -1, np.int32)
    rows[batches >= 0] = places
    data = problem.data
    params = result.variables.params["blocks"]
    sizes_of = [len(jax.tree.leaves(block)) for block in params]
    assert options.learning_rate is not None
    work = Work(
        folder=folder,
        network=layers(setting.network, problem.model.num_classes),
        learning_rate=options.learning_rate,
        batch=options.batch_size,
        blocks=ends,
        x=np.asarray(prepare(data.x[used], data.pipeline)),
        y=data.y[used],
        test_x=np.asarray(prepare(data.test_x, data.pipeline)),
        test_y=data.test_y,
        cohort=np.stack([report.plan.clients for report in seen]),
        steps=np.stack([report.plan.steps for report in seen]),
        batches=rows,
        first=np.asarray([[route.first for route in report.plan.routes] for report in seen]),
        level=np.asarray([[route.width for route in report.plan.routes] for report in seen]),
        shapes=_shapes(setting),
        leaf_block=np.repeat(np.arange(len(params)), sizes_of),
        leaves=[np.asarray(leaf) for leaf in jax.tree.leaves(params)],
    )
    work.save()
    return work


def _shapes(setting: Setting) -> list[list[list[int]]]:
    """Shapes of the blocks' parameters at every width; that of the model comes first."""
    rates = setting.training.get("rates")
    found = [setting.problem.model] if rates is None else networks(setting.problem, rates).models
    return [[list(a.shape) for a in jax.tree.leaves(m.shapes.params["blocks"])] for m in found]
