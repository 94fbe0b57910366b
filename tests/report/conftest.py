"""Fabricated but consistent runs: a barrier over a fleet of three speeds, without any training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedjax_het.report import Population, RunRecord

BLOCK_FLOPS = np.array([4e6, 8e6, 2e6, 1e6])  # per sample
SPEEDS = np.array([2e9, 1e9, 0.5e9])  # per group
MODEL_BYTES = 400_000


def fabricate(
    name: str = "FedAvg",
    seed: int = 0,
    *,
    first_block: tuple[int, int, int] = (0, 0, 0),
    slowness: float = 3.0,
    best: float = 0.95,
    steps: int = 20,
    devices: int = 12,
    deadline_s: float = np.inf,
    every: int = 1,
    targets: tuple[float, ...] = (0.8, 0.9),
    groups: int = 3,
    metric: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    client_rows: str | None = None,
    joules: bool = False,
) -> RunRecord:
    """A run with accuracy `best * (1 - exp(-step / slowness))` and a little noise of the seed.

    A metric of which lower is better is `best * (1 + 9 exp(-step / slowness))` instead.
    `client_rows` are "own" (of own test samples), "personal" (also after local training) or
    "classes" (reweighted accuracies of the classes). With `joules` a FLOP costs 1 nJ and a byte
    sent 10 uJ.
    """
    name_of = "accuracy" if metric is None else metric["name"]
    falling = metric is not None and not metric["higher_is_better"]
    rng = np.random.default_rng(seed)
    noise = 1 + 0.02 * rng.standard_normal(steps + 1)
    group = np.arange(devices) * groups // devices
    sizes = rng.integers(40, 200, devices)
    metrics: list[dict[str, Any]] = [
        {"step": 0, "virtual_s": 0, "wall_s": 0.0, "compile_s": 0.0, "loss": 2.3}
        | {name_of: 10 * best if falling else 0.1}
    ]
    clients: list[dict[str, Any]] = []
    now_s = 0.0
    for step in range(1, steps + 1):
        rows = []
        for client in range(devices):
            third = int(group[client]) * 3 // groups
            first = first_block[third]
            samples = int(sizes[client])
            flops = float(3 * samples * BLOCK_FLOPS[first:].sum() + samples * BLOCK_FLOPS.sum())
            speed = SPEEDS[third] * (1 + 0.01 * (groups - group[client]))
            parts = {"download_s": 0.4, "compute_s": flops / speed, "upload_s": 0.6 - 0.1 * first}
            takes_s = sum(parts.values())
            late = takes_s > deadline_s
            rows.append(
                {
                    "step": step,
                    "client": client,
                    "version": step - 1,
                    "dispatched_s": now_s,
                    "arrived_s": now_s + takes_s,
                    **parts,
                    "bytes_down": MODEL_BYTES,
                    "bytes_up": 0 if late else MODEL_BYTES // (first + 1),
                    "flops": flops,
                    "first_block": first,
                    "exit_block": 3,
                    "samples": samples,
                    "steps": 5,
                    "loss": float("nan") if late else 2 / step,
                    "status": "dropped" if late else "merged",
                }
            )
        if joules:
            for row in rows:
                row["joules"] = 1e-9 * row["flops"] + 1e-5 * row["bytes_up"]
        now_s += min(max(r["arrived_s"] - now_s for r in rows), deadline_s)
        dropped = sum(r["status"] == "dropped" for r in rows)
        row = {
            "step": step,
            "virtual_s": now_s,
            "wall_s": 0.05 * step,
            "compile_s": 1.5,
            "train_loss": np.float32(2 / step),
            "bytes_up": sum(r["bytes_up"] for r in rows),
            "bytes_down": sum(r["bytes_down"] for r in rows),
            **({"joules": sum(r["joules"] for r in rows)} if joules else {}),
            "clients": devices,
            "merged": devices - dropped,
            "dropped": dropped,
            "nonfinite": [],
            "compiled_programs": 3,
            "info": {"server_norm": 1 / step},
        }
        if step % every == 0:
            value = min(best * (1 - np.exp(-step / slowness)) * noise[step], 1.0)
            if falling:
                value = best * (1 + 9 * np.exp(-step / slowness)) * noise[step]
            row |= {
                name_of: value,
                "loss": 1 - value,
                f"client_{name_of}_mean": value,
                f"client_{name_of}_worst_decile": (1.2 if falling else 0.8) * value,
                "confusion_matrix": [[3, 1], [0, 4]],
            }
        metrics.append(row)
        clients += rows
    values = [row[name_of] for row in metrics if name_of in row]
    total = {key: sum(row[key] for row in clients) for key in ("bytes_up", "bytes_down", "flops")}
    if joules:
        spent = np.array([row["joules"] for row in clients])
        own = group[[row["client"] for row in clients]]
        total |= {"joules": spent.sum(), "joules_by_group": np.bincount(own, spent, groups)}
    dropped = sum(row["status"] == "dropped" for row in clients)
    summary = {
        "name": name,
        "algorithm": name.lower(),
        "seed": seed,
        "steps": steps,
        "virtual_s": now_s,
        "wall_s": 0.05 * steps,
        "compile_s": 1.5,
        f"final_{name_of}": values[-1],
        f"best_{name_of}": min(values) if falling else max(values),
        "targets": [{name_of: t, "step": None, "virtual_s": None} for t in targets],
        **({} if metric is None else {"metric": metric}),
        **total,
        "tasks": len(clients),
        "merged": len(clients) - dropped,
        "dropped": dropped,
        "nonfinite": 0,
        "num_clients": devices,
        "num_blocks": 4,
        "block_names": ["conv_1", "conv_2", "dense_1", "head"],
        "data": {"name": "digits", "num_classes": 10},
    }
    counts = rng.multinomial(100, rng.dirichlet([0.3] * 10), devices)
    population = Population(group, sizes, counts)
    config = {
        "algorithm": {"name": name, "learning_rate": 0.1, **(training or {})},
        "uplink_bytes_per_s": np.inf,
        "versions": {"jax": "0.10.2", "numpy": "2.4"},
        "device": "cpu",
        "git_revision": "0123abc",
    }
    evaluated = []
    for step in (steps // 2, steps) if client_rows else ():
        share = (sizes / 200) ** 0.25 * (1 - 0.15 * group / groups) * np.clip(noise[step], 0.9, 1.0)
        for client in range(devices):
            value = values[-1] * (2 - share[client] if falling else share[client])
            row = {
                "step": step,
                "virtual_s": metrics[step]["virtual_s"],
                "client": client,
                "samples": sizes[client] // 5,
                "train_samples": sizes[client],
                "device_group": group[client],
                "own": client_rows != "classes",
                "loss": 0.5,
                name_of: value,
            }
            if client_rows == "personal":
                row[f"personal_{name_of}"] = value * 0.9 if falling else min(1.04 * value, 1.0)
            evaluated.append(row)
    source = f"runs/{name}/{seed}"
    return RunRecord(config, metrics, clients, summary, population, source, evaluated)


MAE = {"name": "mae", "higher_is_better": False, "share": False}


@pytest.fixture(scope="session")
def priced_methods() -> dict[str, list[RunRecord]]:
    """FedAvg and FedPMT over three seeds on devices with prices of energy, and a slower FedAsync.

    FedAsync never reaches 90 %; FedPMT needs the least of everything.
    """
    every = {"joules": True}
    return {
        "FedAvg": [fabricate("FedAvg", seed, **every) for seed in range(3)],
        "FedPMT": [
            fabricate("FedPMT", seed, first_block=(0, 1, 2), slowness=3.5, **every)
            for seed in range(3)
        ],
        "FedAsync": [fabricate("FedAsync", seed, best=0.85, **every) for seed in range(3)],
    }


@pytest.fixture(scope="session")
def two_regressions() -> dict[str, list[RunRecord]]:
    """FedAvg and FedPMT over three seeds, with errors that fall to 2; FedPMT is sooner."""
    every = {"best": 2.0, "metric": MAE, "targets": (3.0, 2.5), "client_rows": "personal"}
    return {
        "FedAvg": [fabricate("FedAvg", seed, **every) for seed in range(3)],
        "FedPMT": [
            fabricate("FedPMT", seed, first_block=(0, 1, 2), slowness=3.5, **every)
            for seed in range(3)
        ],
    }


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunRecord]:
    return fabricate


@pytest.fixture(scope="session")
def two_methods() -> dict[str, list[RunRecord]]:
    """FedAvg and FedPMT over three seeds; FedPMT is sooner."""
    return {
        "FedAvg": [fabricate("FedAvg", seed) for seed in range(3)],
        "FedPMT": [
            fabricate("FedPMT", seed, first_block=(0, 1, 2), slowness=3.5) for seed in range(3)
        ],
    }
