r"""FedPMT's rate of 1 / T on strongly convex problems, by the method itself.

    python -m benchmarks.reproduce.fedpmt_theory --seeds=0,1,2

Logistic regression with an L2 penalty: four blocks hold the weights of a quarter of the features
each, so that every suffix of blocks is a convex problem too. Nine clients train one, three and four
of four blocks, three each. The step size is that of the analysis, 2 / (mu (gamma + t E)) in round t
with E local steps, by `fedpmt(schedule="inverse")`. The gap is the penalised loss over all samples,
less its minimum, which SciPy finds in float64.

"iid": all clients have the same samples, so that only their mini-batches differ and T x gap levels
off. "by_speed": the classes that a client has go with its depth, so that the fixed point is not the
minimum (methods/fedpmt.md 5) and the gap itself levels off. Prints T x gap at several horizons T.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl import app, flags

from benchmarks import harness
from fedjax_het import algorithms
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.federated import from_arrays
from fedjax_het.fleet import presets
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulation import Simulation

BLOCKS, FEATURES, CLASSES, CLIENTS, SAMPLES = 4, 16, 3, 9, 60
DEPTHS = (1, 3, 4)
# Convexity by the penalty; an upper limit of the smoothness for features of unit norm.
PENALTY, SMOOTHNESS, LOCAL_STEPS, BATCH = 0.1, 0.6, 2, 4
HORIZONS = (100, 200, 400, 800, 1600)
SETTINGS = ("iid", "by_speed")


def network() -> BlockModel:
    """Multinomial logistic regression, a quarter of the features in each block."""
    size = FEATURES // BLOCKS

    def block(b: int) -> Block:
        def init(key: jax.Array, x: Any) -> tuple[Any, Any]:
            del key, x
            return {"kernel": jnp.zeros((size, CLASSES), jnp.float32)}, {}

        def apply(params: Any, stats: Any, x: jax.Array, *, train: Any, key: Any) -> Any:
            del train, key
            # Blocks but the first also get the logits so far.
            features = x[:, :FEATURES]
            so_far = x[:, FEATURES:] if b else jnp.zeros((x.shape[0], CLASSES), x.dtype)
            logits = so_far + features[:, b * size : (b + 1) * size] @ params["kernel"]
            last = b == BLOCKS - 1
            return (logits if last else jnp.concatenate([features, logits], axis=1)), stats

        return Block(f"features{b}", init, apply)

    return BlockModel("logistic4", tuple(map(block, range(BLOCKS))), (FEATURES,), CLASSES)


def samples(setting: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of unit norm, labels, and the client of each sample."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, FEATURES))
    y = np.arange(SAMPLES) % CLASSES
    x = centres[y] + 2.0 * rng.normal(size=(SAMPLES, FEATURES))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    if setting == "iid":
        owner = np.repeat(np.arange(CLIENTS), SAMPLES)
        return np.tile(x, (CLIENTS, 1)), np.tile(y, CLIENTS), owner
    # Client k has depth DEPTHS[k mod 3] and the samples of class k mod 3.
    owner = y + len(DEPTHS) * (np.arange(SAMPLES) // CLASSES % (CLIENTS // len(DEPTHS)))
    return x, y, owner


def problem(setting: str, seed: int) -> Problem:
    """The problem of a seed; its test samples are all training samples."""
    x, y, owner = samples(setting, seed)
    data = from_arrays(x, y, x[:SAMPLES], y[:SAMPLES], clients=owner, num_classes=CLASSES)
    return Problem(network(), data, presets.build("uniform", CLIENTS))


def gap(variables: Variables, x: np.ndarray, y: np.ndarray, least: float) -> float:
    """The penalised loss of a model over all samples, less the minimum."""
    kernels = [np.asarray(block["kernel"], np.float64) for block in variables.params["blocks"]]
    return penalised(np.concatenate(kernels), x, y) - least


def penalised(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross-entropy plus half the penalty times the squared norm, in float64."""
    weights = weights.reshape(FEATURES, CLASSES)
    logits = x.astype(np.float64) @ weights
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(y)), y]
    loss = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - chosen)
    return float(loss + 0.5 * PENALTY * np.sum(weights**2))


def minimum(x: np.ndarray, y: np.ndarray) -> float:
    """The smallest penalised loss."""
    found = scipy.optimize.minimize(
        penalised, np.zeros(FEATURES * CLASSES), (x, y), method="L-BFGS-B", options={"ftol": 1e-15}
    )
    return float(found.fun)


def gaps(
    setting: str, seed: int, horizons: Sequence[int] = HORIZONS, *, partial: bool = True
) -> np.ndarray:
    """The gap of FedPMT at every horizon, float64[len(horizons)].

    Args:
      setting: one of `SETTINGS`.
      seed: seed of samples and mini-batches.
      horizons: ascending numbers of rounds.
      partial: whether clients have the depths `DEPTHS`; False for whole models.
    """
    where = problem(setting, seed)
    last = BLOCKS - 1
    depth = np.resize(np.asarray(DEPTHS if partial else (BLOCKS,)), CLIENTS)
    whole = where.cost.step_flops(0, last)
    gamma = max(8 * SMOOTHNESS / PENALTY, LOCAL_STEPS)
    algorithm = algorithms.build(
        "fedpmt",
        where,
        depths=DEPTHS,
        capacity=(where.cost.step_flops(BLOCKS - depth, np.full(CLIENTS, last)) / whole).tolist(),
        learning_rate=2 / (PENALTY * gamma),
        schedule="inverse",
        decay_rounds=gamma / LOCAL_STEPS,
        weight_decay=PENALTY,
        local_steps=LOCAL_STEPS,
        batch_size=BATCH,
    )
    x, y, _ = samples(setting, seed)
    least = minimum(x, y)
    found = []
    rounds = horizons[-1]
    with Simulation(algorithm, where, rounds=rounds, seed=seed, eval_every=rounds) as run:
        for horizon in horizons:
            while run.rounds_done < horizon:
                run.step()
            found.append(gap(run.variables, x, y, least))
    return np.asarray(found)


def slope(found: np.ndarray, horizons: Sequence[int] = HORIZONS) -> float:
    """Exponent of T with which the gap falls, by least squares on logarithms."""
    return float(np.polyfit(np.log(horizons), np.log(found), 1)[0])


def main(_: Sequence[str]) -> None:
    """Prints T x gap of every setting, mean over the seeds, and the slopes."""
    rows = []
    for setting in SETTINGS:
        for partial in (True, False):
            every = [gaps(setting, int(seed), partial=partial) for seed in flags.FLAGS.seeds]
            mean = np.mean(every, axis=0)
            slopes = [slope(one) for one in every]
            rows.append(
                (
                    f"{setting}, {'depths 1, 3, 4' if partial else 'whole models'}",
                    *(f"{t * value:.3f}" for t, value in zip(HORIZONS, mean, strict=True)),
                    f"{np.mean(slopes):.2f} ± {np.std(slopes, ddof=len(slopes) > 1):.2f}",
                )
            )
    print(harness.table(("setting", *(f"T = {t}" for t in HORIZONS), "slope of the gap"), rows))


if __name__ == "__main__":
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    app.run(main)
