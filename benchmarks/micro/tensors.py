"""Cost of FedEL's choice of tensors: 1,000 clients, 60 tensors, 1,000 buckets, against a round.

    python -m benchmarks.micro.tensors

Prints the times of the selection, of the whole plan (probe, windows, selection, prices), and of the
shortest possible round, in which every client trains one step of the model. The model is a
ResNet-20 with group norm, 65 tensors in 11 blocks, on 16 x 16 images. Plan and step are measured on
8 clients and multiplied, because a CPU trains one client after the other.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from fedjax_het.algorithms.fedel import Extensions, fedel
from fedjax_het.algorithms.fedel.selection import select
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet import presets
from fedjax_het.models import build as build_model
from fedjax_het.problem import Problem


def _best_s(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def selection_s(clients: int, tensors: int, buckets: int) -> float:
    """Seconds that `select` takes, the best of ten."""
    rng = np.random.default_rng(0)
    shape = (clients, tensors)
    worth = rng.normal(0.3, 1, shape).astype(np.float32)
    weight = rng.integers(1, buckets // 10, shape).astype(np.int32)
    chain = np.cumsum(rng.integers(0, buckets // 20, shape), axis=1)[:, ::-1].astype(np.int32)
    return _best_s(lambda: select(worth, weight, chain, buckets), 10)


def client_s(width: int) -> tuple[float, float, int]:
    """Seconds of FedEL's plan and of one local step, per client; and the model's tensors."""
    rng = np.random.default_rng(0)
    clients, batch = 8, 16
    x = rng.normal(size=(batch * clients, 16, 16, 3)).astype(np.float32)
    y = rng.integers(0, 10, len(x))
    owner = np.repeat(np.arange(clients), batch)
    data = from_arrays(x, y, x[:10], y[:10], clients=owner, num_classes=10)
    model = build_model("resnet20", (16, 16, 3), 10, width=width)
    problem = Problem(model, data, presets.build("fedel", clients, assignment="cyclic"))
    training: dict[str, Any] = {"learning_rate": 0.1, "batch_size": batch}
    extensions = Extensions(starts_per_exit=1)
    algorithm = fedel(problem, variant="elastic_only", extensions=extensions, **training)
    variables = model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(0))
    situation = Situation(0, 0.0, np.arange(clients), jax.random.key(1), rng)
    plan, _ = algorithm.plan(state, variables, situation)
    engine = make_engine(algorithm, problem)
    plan_s = _best_s(lambda: algorithm.plan(state, variables, situation)[0].rows, 5)
    train_s = _best_s(lambda: engine.train(state, variables, plan, jax.random.key(2))[0], 5)
    return plan_s / clients, train_s / clients, plan.rows["chosen"].shape[1]


def main(_: Sequence[str]) -> None:
    """Prints the table."""
    clients, tensors, buckets = flags.FLAGS.clients, flags.FLAGS.tensors, flags.FLAGS.buckets
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}; {clients} clients, {buckets} buckets")
    select_s = selection_s(clients, tensors, buckets)
    print(f"selection of {tensors} tensors                     {1e3 * select_s:10.1f} ms")
    plan_s, train_s, count = client_s(flags.FLAGS.width)
    plan_s, train_s = clients * plan_s, clients * train_s
    print(f"probe and selection of {count} tensors           {1e3 * plan_s:10.1f} ms")
    print(f"one local step of 16 samples, full route     {1e3 * train_s:10.1f} ms")
    share = select_s / (select_s + train_s)
    print(f"selection / (selection + training)           {100 * share:10.2f} %")


if __name__ == "__main__":
    flags.DEFINE_integer("clients", 1_000, "Clients that choose at once.")
    flags.DEFINE_integer("tensors", 60, "Tensors of the selection alone.")
    flags.DEFINE_integer("buckets", 1_000, "Parts of the budget.")
    flags.DEFINE_integer("width", 4, "Planes of the network's first group.")
    app.run(main)
