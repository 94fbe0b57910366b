"""Times of DTFL's clock and scheduler for the networks and the fleet of the paper, untrained.

    python -m benchmarks.reproduce.dtfl_timing --out=docs/results/images

Round times do not depend on the trained weights, so the paper's own sizes (ResNet-56 and -110,
5,000 CIFAR-10 images per client, batches of 100, five device profiles) take seconds here: plans are
made and observed without training. A network of eight small blocks has the prices of the real
network. Prints tables in Markdown and draws the figure.
"""

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks.reproduce.claims import store
from fedjax_het import algorithms, models
from fedjax_het.algorithms.dtfl import Scheduler
from fedjax_het.contract.algorithm import Algorithm, Report
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.fleet import presets
from fedjax_het.fleet.cost import CostTable, cost_table
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem

BATCH = 100
# Seconds of a batch on the reference machine by depth of the network: the constant of the authors'
# code, and what the paper's Table 1 implies for ResNet-110 (methods/dtfl.md 5).
BATCH_S = {56: 0.16, 110: 0.29}
OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": BATCH}
# Rounds to 80 % that the communication columns of the paper's Table 1 imply, tiers 1 to 6.
ROUNDS = {1: (142, 144, 105, 105, 96, 85), 2: (142, 145, 107, 108, 92, 83)}
CASES = {1: (2, 3, 4), 2: (1, 3, 5)}
TABLE_1 = {
    1: ((4622, 8106, 9982, 10681, 11722, 12250), (5911, 5995, 2187, 2189, 1018, 908), 13408),
    2: ((8384, 14634, 17993, 19027, 21428, 22344), (17754, 18090, 6720, 6762, 2941, 2653), 24471),
}
# Seconds to 80 % on CIFAR-10, IID, ten clients (Table 3), and with more of them (Table 4).
TABLE_3 = {
    "dtfl": (2750, 4816),
    "fedyogi": (9122, 19299),
    "fedavg": (13157, 24471),
    "fedgkt": (25458, 39676),
    "splitfed": (35877, 67265),
}


@functools.cache
def _samples(clients: int, each: int) -> FederatedData:
    """Nothing but numbers of samples."""
    x = np.zeros((clients * each, 1), np.float32)
    owner = np.repeat(np.arange(clients), each)
    y = np.arange(clients * each) % 10
    return from_arrays(x, y, x[:10], y[:10], clients=owner, num_classes=10)


@functools.cache
def _stand_in() -> BlockModel:
    return models.build("mlp", (1,), 10, exits=True, hidden=(1,) * 7)


@functools.cache
def _prices(depth: int) -> tuple[CostTable, float]:
    """The network's table of costs, and the reference machine: `BATCH_S` for a batch of 100."""
    shape = (32, 32, 3)
    network = models.build(
        f"resnet{depth}", shape, 10, exits=True, norm="batch", granularity="module"
    )
    cost = cost_table(network)
    return cost, float(cost.step_flops()) * BATCH / BATCH_S[depth]


def setting(
    depth: int, clients: int = 10, each: int = 5000, jitter: float = 0.0, **fleet: Any
) -> tuple[Problem, float]:
    """The paper's problem with so many clients, and the server's speed."""
    cost, speed = _prices(depth)
    devices = presets.build("dtfl", clients, base_flops_per_s=speed, **fleet)
    devices = replace(devices, compute_jitter=jitter)
    return Problem(_stand_in(), _samples(clients, each), devices, cost), speed


def rounds_of(
    algorithm: Algorithm, problem: Problem, count: int, seed: int = 0
) -> Iterable[tuple[Any, float, float]]:
    """`(plan, seconds of the round, wall seconds of planning and observing)` of each round."""
    key = jax.random.key(seed)
    variables = problem.model.init(key)
    state = algorithm.init(variables, key)
    everyone, now_s = np.arange(problem.num_clients), 0.0
    for round in range(count):
        rng = np.random.default_rng([seed, round, 0])
        clients = np.sort(rng.choice(everyone, algorithm.cohort_size, replace=False))
        began = time.perf_counter()
        plan, state = algorithm.plan(state, variables, Situation(round, now_s, clients, key, rng))
        # A server that trains in `observe` has nothing to learn from here.
        if algorithm.observe is not None and not algorithm.replaces:
            k = len(clients)
            losses = {"client_loss": np.zeros(k), "server_loss": np.zeros(k)}
            whole = np.ones(k, bool)
            late = np.zeros(k, np.int64)
            report = Report(round, plan, np.zeros(k), plan.steps, whole, late, losses, {})
            state, _, _ = algorithm.observe(state, variables, report)
        wall_s = time.perf_counter() - began
        lasts = float(np.max(plan.timing.total_s))
        now_s += lasts
        yield plan, lasts, wall_s


def mean_round_s(name: str, problem: Problem, count: int, skip: int = 2, **options: Any) -> float:
    """Mean over rounds, without the first ones; the scheduler has settled by then."""
    algorithm = algorithms.build(name, problem, **{**OPTIONS, **options})
    return float(np.mean([s for _, s, _ in rounds_of(algorithm, problem, count)][skip:]))


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers to four digits."""
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@functools.cache
def round_times(name: str) -> tuple[float, float]:
    """Seconds of a round of a method with ResNet-56 and ResNet-110."""
    each = []
    for depth in (56, 110):
        problem, speed = setting(depth)
        own = {} if name in ("fedavg", "fedyogi") else {"server_flops_per_s": speed}
        each.append(_round_s(name, problem, own))
    return each[0], each[1]


def methods() -> str:
    """Seconds of a round of every method, beside the paper's seconds to its target."""
    rows: list[list[Any]] = []
    for name, paper in TABLE_3.items():
        ours = round_times(name), round_times("dtfl")
        pairs = list(zip(ours[0], paper, ours[1], TABLE_3["dtfl"], strict=True))
        cells = [value for here, there, _, _ in pairs for value in (here, there)]
        ratios = [ratio for a, b, c, d in pairs for ratio in (a / c, b / d)]
        rows.append([name, *cells, *ratios])
    head = ["method", "R56 round s", "paper s", "R110 round s", "paper s"]
    head += ["R56 round / DTFL", "paper / DTFL", "R110 round / DTFL", "paper / DTFL"]
    return markdown(head, rows)


def _round_s(name: str, problem: Problem, own: dict[str, Any]) -> float:
    # FedGKT's server trains 20 epochs for 20 rounds, then 15 and 10.
    return mean_round_s(name, problem, 40 if name == "fedgkt" else 8, **own)


def table_1() -> str:
    """Everyone in one tier: compute and communication to 80 % at the paper's numbers of rounds."""
    rows = []
    for case, profiles in CASES.items():
        problem, speed = setting(110, profiles=profiles)
        for m in range(1, 7):
            algorithm = algorithms.dtfl(
                problem,
                tiers=6,
                scheduler=Scheduler(fixed_tier=m),
                server_flops_per_s=speed,
                **OPTIONS,
            )
            timing = next(iter(rounds_of(algorithm, problem, 1)))[0].timing
            slowest = int(np.argmax(timing.total_s))
            moved_s = timing.download_s[slowest] + timing.upload_s[slowest]
            count, computed = ROUNDS[case][m - 1], timing.compute_s[slowest]
            paper = TABLE_1[case][0][m - 1], TABLE_1[case][1][m - 1]
            transferred = moved_s * count
            total = (computed + moved_s) * count
            row = [case, m, count, computed * count, paper[0], transferred, paper[1]]
            rows.append([*row, total, sum(paper)])
    head = ["case", "tier", "rounds (paper)", "compute s", "paper", "transfer s", "paper"]
    return markdown([*head, "total s", "paper"], rows)


def numbers_of_tiers() -> str:
    """Mean seconds of a round with 1 to 7 tiers, constant and re-drawn every 20 rounds."""
    rows = []
    for m in range(1, 8):
        cells: list[Any] = [m]
        for depth in (56, 110):
            for fleet in ({}, {"redraw_every": 20}):
                problem, speed = setting(depth, **fleet)
                cells.append(mean_round_s("dtfl", problem, 200, tiers=m, server_flops_per_s=speed))
        rows.append(cells)
    return markdown(["tiers", "R56", "R56 re-drawn", "R110", "R110 re-drawn"], rows)


def numbers_of_clients() -> str:
    """Mean seconds of a round, a tenth of the clients in each, and what planning costs."""
    rows = []
    for n, each in ((20, 2500), (50, 1000), (100, 500), (200, 250), (10_000, 20)):
        problem, speed = setting(110, n, each)
        options = {**OPTIONS, "clients_per_round": n if n > 1000 else n // 10}
        algorithm = algorithms.build("dtfl", problem, server_flops_per_s=speed, **options)
        taken = list(rounds_of(algorithm, problem, 60))
        whole = mean_round_s("fedavg", problem, 60, clients_per_round=options["clients_per_round"])
        mine = float(np.mean([s for _, s, _ in taken][20:]))
        wall = float(np.median([w for _, _, w in taken]))
        rows.append([n, options["clients_per_round"], mine, whole, whole / mine, 1e3 * wall])
    head = ["clients", "per round", "DTFL round s", "FedAvg round s", "ratio", "scheduling ms"]
    return markdown(head, rows)


def averages() -> str:
    """Mean seconds of a round against the weight of a new observation, as devices fluctuate."""
    rows = []
    for alpha in (0.1, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 1.0):
        cells: list[Any] = [alpha]
        for jitter, every in ((0.0, None), (0.0, 20), (0.3, None), (0.3, 20), (0.6, 20)):
            lasts = []
            for seed in range(3):
                problem, speed = setting(56, jitter=jitter, redraw_every=every, seed=seed)
                own = {**OPTIONS, "scheduler": {"ema": alpha}, "server_flops_per_s": speed}
                algorithm = algorithms.build("dtfl", problem, **own)
                lasts += [s for _, s, _ in rounds_of(algorithm, problem, 150, seed)][2:]
            cells.append(float(np.mean(lasts)))
        rows.append(cells)
    head = ["EMA weight", "constant", "re-drawn", "noise 0.3", "noise 0.3, re-drawn"]
    return markdown([*head, "noise 0.6, re-drawn"], rows)


def tiers_over_time(depth: int = 110, count: int = 80) -> Figure:
    """Every client's tier beside its device's speed, devices re-drawn every 20 rounds."""
    problem, speed = setting(depth, redraw_every=20, jitter=0.1)
    own = {**OPTIONS, "server_flops_per_s": speed}
    algorithm = algorithms.build("dtfl", problem, **own)
    taken = list(rounds_of(algorithm, problem, count))
    tier = np.array([plan.notes["tier"] + 1 for plan, _, _ in taken]).T
    pace = np.array([problem.fleet.at(r).flops_per_s for r in range(count)]).T / speed
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
    image = axes[0].imshow(np.log2(pace), aspect="auto", cmap="Greys_r", interpolation="nearest")
    figure.colorbar(image, ax=axes[0], label="log2 of relative speed")
    image = axes[1].imshow(
        tier, aspect="auto", cmap="viridis", vmin=1, vmax=7, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes[1], label="tier (7: all but the head)")
    axes[2].plot([s for _, s, _ in taken], color="#4477AA")
    axes[2].set_ylabel("round (s)")
    axes[2].set_yscale("log")
    axes[2].set_xlabel("round")
    for part, title in zip(axes, ("speed of the device", "tier of the client")):
        part.set_ylabel("client")
        part.set_title(title, fontsize=10)
    return figure


STUDIES = {
    "methods": methods,
    "table_1": table_1,
    "tiers": numbers_of_tiers,
    "clients": numbers_of_clients,
    "ema": averages,
}


def main(_: Sequence[str]) -> None:
    """Prints the chosen tables."""
    for name in flags.FLAGS.studies:
        if name == "figure":
            place = Path(flags.FLAGS.out)
            place.mkdir(parents=True, exist_ok=True)
            tiers_over_time().savefig(place / "dtfl_tiers.png", dpi=130)
        else:
            print(f"\n{name}\n\n{STUDIES[name]()}", flush=True)
    if flags.FLAGS.store:
        whole, tiered = round_times("fedavg"), round_times("dtfl")
        ratios = [a / b for a, b in zip(whole, tiered, strict=True)]
        store("dtfl", {"round, R56": ratios[:1], "round, R110": ratios[1:]})


if __name__ == "__main__":
    flags.DEFINE_list("studies", [*STUDIES, "figure"], "What to print.")
    flags.DEFINE_bool("store", False, "Whether to store the ratios of rounds as claims.")
    flags.DEFINE_string("out", "docs/results/images", "Where the figure goes.")
    app.run(main)
