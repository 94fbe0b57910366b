"""What compressed updates gain on slow uplinks: FedAvg on FEMNIST, phones whose uploads dominate.

    python -m benchmarks.reproduce.compression --out=runs/compression

207 writers (28,237 images to train, 3,245 to test) on phones drawn from published statistics, with
a median uplink of 64 KiB/s in place of 3,286. The network has one hidden layer of 100 (84,762
parameters, 339 kB). Ten clients a round take 5 steps of 20. Step sizes are searched for five arms
on seed 10, the others have that of FedAvg. Then every arm runs for `--rounds` rounds with seeds 0,
1 and 2. Prints a table in Markdown, with the share of the clients' time that is upload, and
FedAvg's times to the targets over those of the arm. Cells with a file are not repeated.

Data:      femnist_leaf_207w.npz in FEDJAX_HET_DATA
Results:   docs/results/compression.md
"""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

import fedjax_het as fh
from benchmarks.cells import curve, run_cells
from fedjax_het.fleet.phones import KIB
from fedjax_het.transforms import Transformation

UPLINK_BYTES_PER_S = 64 * KIB
TRAINING: dict[str, Any] = {"batch_size": 20, "local_steps": 5, "clients_per_round": 10}
STEP_SIZES = (0.03, 0.1, 0.3)
SEARCHED, SEEDS = (10,), (0, 1, 2)
TARGETS = (0.6, 0.7, 0.75)

ARMS: dict[str, tuple[Transformation, ...]] = {
    "FedAvg": (),
    "top-k 10 %": (fh.compress.top_k(0.1),),
    "top-k 10 %, feedback": (fh.compress.top_k(0.1, error_feedback=True),),
    "top-k 1 %": (fh.compress.top_k(0.01),),
    "top-k 1 %, feedback": (fh.compress.top_k(0.01, error_feedback=True),),
    "random-k 10 %": (fh.compress.random_k(0.1),),
    "QSGD, 4 bits": (fh.compress.qsgd(levels=7),),
    "uniform, 4 bits": (fh.compress.uniform(bits=4),),
    "sign": (fh.compress.sign(),),
    "sign, feedback": (fh.compress.sign(error_feedback=True),),
}

# Arms whose step size is searched.
TUNED = ("FedAvg", "top-k 10 %", "top-k 10 %, feedback", "sign", "sign, feedback")


@functools.cache
def setting() -> fh.Problem:
    """The writers, the network and the phones."""
    data = fh.data.load_federated("femnist", num_clients=207)
    model = fh.models.build("mlp", data.input_shape, data.num_classes, hidden=(100,))
    fleet = fh.fleet.phones(data.num_clients, median_uplink_bytes_per_s=UPLINK_BYTES_PER_S)
    return fh.Problem(model, data, fleet)


def run_arm(
    arm: Sequence[Transformation], learning_rate: float, seeds: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Runs FedAvg with these transformations; one result a seed.

    Args:
      arm: transformations of FedAvg.
      learning_rate: step size of the clients.
      seeds: seeds of the runs.
      rounds: number of rounds.
    """
    problem, began = setting(), time.perf_counter()
    method = fh.compose(
        fh.algorithms.fedavg(problem, **TRAINING, learning_rate=learning_rate), *arm
    )
    results = fh.simulate(method, problem, seeds=seeds, rounds=rounds, eval_every=10)
    return [
        {
            "learning_rate": learning_rate,
            "seed": seed,
            **curve(result.record),
            **_shares(result.record.clients),
            "bytes_up": result.record.summary["bytes_up"],
            "wall_s": (time.perf_counter() - began) / len(seeds),
        }
        for seed, result in zip(seeds, results, strict=True)
    ]


def _shares(clients: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Uplink bytes of a task, and the share of the tasks' time that is upload."""
    columns = {name: np.sum([row[name] for row in clients]) for name in ("upload_s", "bytes_up")}
    total_s = sum(row["download_s"] + row["compute_s"] + row["upload_s"] for row in clients)
    return {
        "task_bytes_up": float(columns["bytes_up"] / len(clients)),
        "upload_share": float(columns["upload_s"] / total_s),
    }


def accuracy(run: Mapping[str, Any]) -> float:
    """Mean accuracy of the last five evaluations; 0 if the run diverged."""
    last = np.asarray(run["accuracy"][-5:], np.float64)
    return float(np.mean(last)) if np.all(np.isfinite(last)) else 0.0


def first_at(run: Mapping[str, Any], target: float) -> int | None:
    """Index of the first evaluation at the target, or None."""
    reached = np.flatnonzero(np.asarray(run["accuracy"], np.float64) >= target)
    return int(reached[0]) if reached.size else None


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(float(np.mean(values)), form)
    return mean if len(values) < 2 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]], targets: Sequence[float]) -> list[str]:
    """One line of Markdown an arm; a target that a seed misses is left empty."""
    heads = ["arm", "step size", "kB up a task", "upload, % of the time"]
    for target in targets:
        heads += [f"s to {100 * target:g} %", f"MB up to {100 * target:g} %"]
    heads += ["accuracy at the end (%)", "FedAvg's times over these"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    times: dict[tuple[str, float], float] = {}
    for label, rows in runs.items():
        cells = [
            label,
            f"{rows[0]['learning_rate']:g}",
            f"{rows[0]['task_bytes_up'] / 1e3:.1f}",
            f"{100 * np.mean([run['upload_share'] for run in rows]):.0f}",
        ]
        for target in targets:
            at = [first_at(run, target) for run in rows]
            if None in at:
                cells += ["", ""]
                continue
            ends = [run["virtual_s"][i] for run, i in zip(rows, at, strict=True)]
            steps = [run["step"][i] for run, i in zip(rows, at, strict=True)]
            tasks = TRAINING["clients_per_round"] * np.asarray(steps)
            times[label, target] = float(np.mean(ends))
            cells += [
                _spread(ends, ".0f"),
                _spread(tasks * rows[0]["task_bytes_up"] / 1e6, ".1f"),
            ]
        cells.append(_spread([100 * accuracy(run) for run in rows], ".1f"))
        ratios = [
            f"{times['FedAvg', t] / times[label, t]:.1f}"
            if {("FedAvg", t), (label, t)} <= set(times)
            else "-"
            for t in targets
        ]
        cells.append(", ".join(ratios))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(_: Sequence[str]) -> None:
    """Searches the step sizes, runs the arms and prints the table."""
    logging.set_verbosity(logging.WARNING)
    out, rounds = flags.FLAGS.out, flags.FLAGS.rounds

    def announce(name: str, runs: Sequence[Mapping[str, Any]]) -> None:
        scores = ", ".join(f"{100 * accuracy(run):.1f}" for run in runs)
        print(f"{name}: {scores} %, {runs[0]['wall_s']:.0f} s a run", flush=True)

    searched = run_cells(
        {
            f"search {label} {rate}": functools.partial(
                run_arm, ARMS[label], rate, SEARCHED, rounds // 3
            )
            for label in TUNED
            for rate in STEP_SIZES
        },
        out,
        announce,
    )

    def best_step(label: str) -> float:
        tuned = label if label in TUNED else "FedAvg"
        return max(STEP_SIZES, key=lambda rate: accuracy(searched[f"search {tuned} {rate}"][0]))

    best = {label: best_step(label) for label in ARMS}
    for label in TUNED:
        tried = [
            f"{rate}: {accuracy(searched[f'search {label} {rate}'][0]):.3f}" for rate in STEP_SIZES
        ]
        print(f"{label}, step size and accuracy: {', '.join(tried)}")
    runs = run_cells(
        {
            f"{label} {best[label]}": functools.partial(run_arm, arm, best[label], SEEDS, rounds)
            for label, arm in ARMS.items()
        },
        out,
        announce,
    )
    named = {label: runs[f"{label} {best[label]}"] for label in ARMS}
    print("\n".join(table(named, TARGETS)))


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/compression", "Directory of the results.")
    flags.DEFINE_integer("rounds", 300, "Rounds of a run; a search takes a third.")
    app.run(main)
