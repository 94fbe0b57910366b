"""Clients that send NaN, infinite or huge values, for every registered method.

    python -m benchmarks.faults.updates --minutes=5 [--seed=0]
    python -m benchmarks.faults.updates --cases=500

A case is a tiny run of one method, in turn, on ten clients of which one sends bad values in every
round or now and then: in its update, in its running statistics, in what it sends besides (logits,
importances), or in what it reports. The run must end or refuse in one line, the model must be
finite, the records readable and sound, and the rows must say which updates were left out.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.faults import judging, processes, tiny
from benchmarks.faults.campaign import Campaign, Case, Verdict, failure, generator, kind_of, main
from benchmarks.faults.processes import Ended, Worker
from fedjax_het import algorithms, experiment
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.report.records import RunRecord

_VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e38": 1e38, "1e30": 1e30}
_PARTS = ("delta", "delta", "delta", "stats", "aux", "loss", "info")
_ROUNDS = 3
_CLIENTS = 10


def generate(seed: int, number: int) -> Case:
    """A method, in turn, and the values that one of its clients sends."""
    rng = generator(seed, number)
    return {
        "method": tiny.METHODS[number % len(tiny.METHODS)],
        "value": str(rng.choice(list(_VALUES))),
        "part": str(rng.choice(_PARTS)),
        "whole": bool(rng.integers(2)),
        "sometimes": bool(rng.integers(2)),
        "client": int(rng.integers(_CLIENTS)),
        "seed": int(rng.integers(3)),
    }


def poisoned(algorithm: Algorithm, case: Case) -> Algorithm:
    """The method with a client that sends bad values."""
    honest, value, part = algorithm.local, _VALUES[case["value"]], case["part"]

    def local(*arguments: Any) -> Any:
        result, task = honest(*arguments), arguments[3]
        attacks = task.client == case["client"]
        if case["sometimes"]:
            attacks &= jax.random.bernoulli(jax.random.fold_in(task.key, 77))

        def spoilt(leaf: Any) -> Any:
            leaf = jnp.asarray(leaf)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            bad = jnp.full_like(leaf, value)
            if not case["whole"] and leaf.size:
                bad = leaf.ravel().at[0].set(value).reshape(leaf.shape)
            return jnp.where(attacks, bad, leaf)

        return result._replace(**{part: jax.tree.map(spoilt, getattr(result, part))})

    return algorithm._replace(local=local)


def answer(case: Case) -> Verdict:
    """The verdict on a run, in a process of its own."""
    config = tiny.config(case["method"])
    config["data"]["num_clients"] = _CLIENTS
    if "levels" in config["algorithm"] and isinstance(config["algorithm"]["levels"], list):
        config["algorithm"]["levels"] = [client % 3 for client in range(_CLIENTS)]
    config["run"] |= {"rounds": _ROUNDS, "seed": case["seed"], "checkpoint_every": 2}
    build: Callable[..., Algorithm] = algorithms.build

    def bad(*arguments: Any, **options: Any) -> Algorithm:
        return poisoned(build(*arguments, **options), case)

    try:
        with (
            mock.patch.object(algorithms, "build", bad),
            tempfile.TemporaryDirectory(prefix="faults-") as place,
        ):
            result = experiment.train(config, place)
            record = RunRecord.load(place)
    except InputError as error:
        return judging.refused(str(error))
    except Exception as error:
        return failure(kind_of(error), repr(error))
    finally:
        judging.release()
    leaves = map(np.asarray, jax.tree.leaves(result.variables))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        return failure(f"{case['part']}: the model is not finite", str(case))
    told = {row["client"] for row in record.clients if row["status"] == "nonfinite"}
    if told - {case["client"]} and not math.isfinite(_VALUES[case["value"]]):
        return failure(f"{case['part']}: honest clients are not finite", f"{sorted(told)}")
    if record.summary["nonfinite"] != sum(len(r.get("nonfinite", [])) for r in record.metrics):
        return failure("rows and summary count other updates", str(record.summary["nonfinite"]))
    return Verdict("left out" if told else "ran")


def smaller(case: Case) -> Iterator[Case]:
    """A plain method, all values at once, in every round."""
    for name, plain in (("method", "fedavg"), ("whole", True), ("sometimes", False), ("seed", 0)):
        if case[name] != plain:
            yield {**case, name: plain}


def run(worker: Worker, case: Case) -> Verdict:
    """The worker's verdict, or that it hung or died."""
    told = worker.ask(case)
    if not isinstance(told, Ended):
        return told
    what = "hangs" if told.code is None else f"the process ends with {told.code}"
    return failure(what, f"{case} {told.output[-200:]}")


if __name__ == "__main__":
    processes.freeze()
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as place,
        Worker(answer, Path(place) / "output.txt", most=100) as worker,
    ):
        main(Campaign("updates", __doc__, generate, functools.partial(run, worker), smaller))
