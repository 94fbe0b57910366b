"""fedjax (Google): `federated_averaging` on a haiku network, its default backend."""

import math
import sys
from collections.abc import Sequence

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.nets import Layer, flat
from benchmarks.peers.work import Gate, Work, load

# fedjax 0.0.17 still calls `jax.tree_map`, which JAX has renamed since.
jax.tree_map = jax.tree.map  # type: ignore[attr-defined]

# Names of the parameters of a layer in haiku, in the order of our leaves.
_NAMES = {"conv": ("b", "w"), "dense": ("b", "w"), "norm": ("offset", "scale")}


class Net:
    """Calls the layers; every one is named by its place among those of `nets.flat`."""

    def __init__(self, network: Sequence[Layer], train: bool):
        self._network, self._train, self._place = network, train, 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return self._run(self._network, x)

    def _run(self, network: Sequence[Layer], x: jax.Array) -> jax.Array:
        for layer in network:
            x = self._call(layer, x)
        return x

    def _call(self, layer: Layer, x: jax.Array) -> jax.Array:
        kind, *rest = layer
        if kind == "unit":
            body = self._run(rest[0], x)
            return jax.nn.relu(body + self._run(rest[1], x))
        name = f"layer_{self._place}"
        self._place += 1
        if kind == "conv":
            features, window, stride, padding, bias = rest
            low = window // 2 if padding == "same" else 0
            edges = [(low, low)] * 2
            conv = hk.Conv2D(
                features, window, stride=stride, padding=edges, with_bias=bias, name=name
            )
            return conv(x)
        if kind == "norm":
            return hk.GroupNorm(math.gcd(x.shape[-1], rest[0]), name=name)(x)
        if kind == "dense":
            return hk.Linear(rest[0], name=name)(x)
        if kind == "dropout":
            return hk.dropout(hk.next_rng_key(), rest[0], x) if self._train else x
        if kind == "pool":
            return hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        if kind == "mean":
            return jnp.mean(x, (1, 2))
        return jax.nn.relu(x) if kind == "relu" else x.reshape(x.shape[0], -1)


def _slots(network: Sequence[Layer]) -> list[tuple[str, str]]:
    """(module, parameter) in the order of our leaves."""
    found = []
    for place, layer in enumerate(flat(network)):
        names: tuple[str, ...] = _NAMES.get(layer[0], ())
        if layer[0] == "conv" and not layer[5]:
            names = ("w",)
        found += [(f"layer_{place}", name) for name in names]
    return found


def make_model(work: Work) -> fedjax.Model:
    """The network as a fedjax model."""

    def forward(batch: dict[str, jax.Array], train: bool = False) -> jax.Array:
        return Net(work.network, train)(batch["x"])

    def loss(batch: dict[str, jax.Array], logits: jax.Array) -> jax.Array:
        return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)

    return fedjax.create_model_from_haiku(
        hk.transform(forward),
        {"x": work.x[: work.batch], "y": work.y[: work.batch]},
        loss,
        {"accuracy": fedjax.metrics.Accuracy()},
        train_kwargs={"train": True},
        eval_kwargs={"train": False},
    )


def run(work: Work, gate: Gate) -> list[np.ndarray]:
    """All rounds; returns the weights."""
    model = make_model(work)
    slots = _slots(work.network)
    params: dict[str, dict[str, jax.Array]] = {}
    for (module, name), leaf in zip(slots, work.leaves, strict=True):
        params.setdefault(module, {})[name] = _reshaped(jnp.asarray(leaf), name, model, module)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(work.learning_rate),
        fedjax.optimizers.sgd(1.0),
        # The samples lie in the order in which they are to be visited.
        fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch, num_epochs=1, skip_shuffle=True),
    )
    state = algorithm.init(params)
    test = fedjax.ClientDataset({"x": work.test_x, "y": work.test_y})

    def accuracy() -> float:
        batches = test.padded_batch(batch_size=500)
        return float(fedjax.evaluate_model(model, state.params, batches)["accuracy"])

    gate.ready()
    for r in range(work.rounds):
        keys = jax.random.split(jax.random.PRNGKey(r), work.cohort.shape[1])
        clients = []
        for member, client in enumerate(work.cohort[r]):
            rows = work.samples(r, member)
            data = fedjax.ClientDataset({"x": work.x[rows], "y": work.y[rows]})
            clients.append((str(client), data, keys[member]))
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        gate.after_round(r + 1, accuracy)
    return [
        np.asarray(state.params[module][name]).reshape(leaf.shape)
        for (module, name), leaf in zip(slots, work.leaves, strict=True)
    ]


def _reshaped(leaf: jax.Array, name: str, model: fedjax.Model, module: str) -> jax.Array:
    """A leaf in the shape that haiku gives it: the same values, axes of length one apart."""
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    return leaf.reshape(shapes[module][name].shape)


def main() -> None:
    """`python -m benchmarks.peers.fedjax_sim FOLDER NAME`."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    gate.finish(run(work, gate))


if __name__ == "__main__":
    main()
