"""A network of your own, in flax nnx, on windows of a sensor: FedAvg against FedPMT.

    python -m benchmarks.studies.sensors --workdir=runs/sensors

The sensor is a microphone: windows of one second of Speech Commands, 64 time steps of 32 bands,
12 classes, from the 20 speakers with the most clips (932 to train, 224 to test), on devices of
three speeds. `Stage` and `Net` below are plain nnx modules; `from_flax` makes every submodule of
`Net` a block, which FedPMT can leave untrained on a slow device. The step size is the best of 0.03,
0.1, 0.3 and 1 for both methods on seed 10.

Measured on 2 CPU cores (JAX 0.10.2; mean and standard deviation over 3 seeds): 75 % after
44.9 ± 3.9 virtual seconds with FedAvg and 19.5 ± 1.6 with FedPMT (2.3x); after 60 s 80.1 ± 0.7 and
86.2 ± 1.2 %, for the worst two speakers 66.9 ± 4.5 and 56.7 ± 2.9 %. 4 minutes for all six runs.

Data:      speech_commands_v2_test_8khz.npz in FEDJAX_HET_DATA
Results:   docs/results/objectives.md
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from flax import nnx

import fedjax_het as fh
from fedjax_het.report.comparison import Comparison

SPEAKERS = 20
TARGETS = (0.5, 0.7, 0.75)


class Stage(nnx.Module):
    """Convolution over time, group norm, ReLU, maximum of two neighbours."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(inputs, outputs, (5,), use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(outputs, num_groups=4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, T, inputs] -> [batch, T // 2, outputs]`."""
        return nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2,), (2,))


class Net(nnx.Module):
    """Three stages, the mean over time, and a linear layer."""

    def __init__(self, bands: int, classes: int, *, rngs: nnx.Rngs):
        self.first = Stage(bands, 32, rngs=rngs)
        self.second = Stage(32, 64, rngs=rngs)
        self.third = Stage(64, 64, rngs=rngs)
        self.head = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, T, bands, 1] -> [batch, classes]`."""
        x = self.third(self.second(self.first(x[..., 0])))
        return self.head(jnp.mean(x, axis=1))


def make_problem(data: fh.data.FederatedData) -> fh.Problem:
    """The network on this data, on devices of three speeds."""
    bands, classes = data.input_shape[1], data.num_classes
    model = fh.models.from_flax(lambda rngs: Net(bands, classes, rngs=rngs), data.input_shape)
    fleet = fh.fleet.build(
        "speed_groups",
        data.num_clients,
        # They afford the head alone, all but the first stage, and the whole network.
        relative_speeds=(0.38, 0.76, 1.0),
        base_flops_per_s=1e9,
    )
    return fh.Problem(model, data, fleet)


def study(problem: fh.Problem, workdir: str, seeds: Sequence[int], seconds: float) -> Comparison:
    """Runs both methods with every seed for so many virtual seconds, and writes their page."""
    methods = {"FedAvg": fh.algorithms.fedavg, "FedPMT": fh.algorithms.fedpmt}
    runs = {
        label: fh.simulate(
            method(problem, learning_rate=0.3, batch_size=8, local_steps=5),
            problem,
            seeds=seeds,
            name=label,
            workdir=f"{workdir}/{label.lower()}",
            rounds=1000,
            max_virtual_s=seconds,
            eval_every=2,
            targets=TARGETS,
        )
        for label, method in methods.items()
    }
    return fh.report.compare(runs, targets=TARGETS, out_dir=workdir)


def main(argv: list[str]) -> None:
    """Runs the study and prints its table."""
    del argv
    logging.set_verbosity(logging.WARNING)  # checkpoints report every step
    problem = make_problem(fh.data.load_federated("speech_commands", num_clients=SPEAKERS))
    print("blocks:", ", ".join(problem.cost.names))
    comparison = study(problem, flags.FLAGS.workdir, seeds=(0, 1, 2), seconds=60.0)
    print(comparison.headline)
    print(comparison.table())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sensors", "Directory of the runs and the page.")
    app.run(main)
