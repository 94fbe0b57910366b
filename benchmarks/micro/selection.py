"""Cost of a selection among many clients, as a multiple of the uniform one's.

    python -m benchmarks.micro.selection
    python -m benchmarks.micro.selection --clients 10000 --cohort 10

A call chooses one cohort; learning from its results is timed by itself, and so are ten clients of
a buffer, one after the other, while a cohort is at work. Half of the clients have been seen, as in
the middle of a run, and prices were asked for before.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from fedjax_het.contract.algorithm import Aggregator, Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Pool, Seen
from fedjax_het.engine.selecting import Selection
from fedjax_het.transforms import select


class Setting(NamedTuple):
    """A method of nothing but a selection, and its clients.

    Attributes:
      samples: number of training samples of each client, int64[n].
      duration_s: seconds that each client's task takes, float64[n].
      loss: training loss of each client, float64[n].
      cohort: number of clients to select.
    """

    samples: np.ndarray
    duration_s: np.ndarray
    loss: np.ndarray
    cohort: int

    def price(self, clients: np.ndarray) -> Timing:
        """Prices of tasks, a third of the time each for download, training and upload."""
        part = self.duration_s[clients] / 3
        none = np.zeros(len(clients))
        return Timing(part, part, part, none, none, none)

    def seen(self, round: int, clients: np.ndarray) -> Seen:
        """A step in which all clients were merged."""
        return Seen(
            round=round,
            clients=clients,
            status=np.full(len(clients), "merged"),
            loss=self.loss[clients],
            square_loss=self.loss[clients] ** 2,
            samples=self.samples[clients],
            sizes=self.samples[clients],
            duration_s=self.duration_s[clients],
        )


def make_setting(clients: int, cohort: int) -> Setting:
    """Clients with skewed sizes, and log-normal durations and losses."""
    rng = np.random.default_rng(0)
    samples = rng.integers(10, 1000, clients)
    return Setting(
        samples, rng.lognormal(1.0, 0.8, clients), rng.lognormal(0.0, 0.5, clients), cohort
    )


def choices(cohort: int) -> dict[str, dict[str, Any]]:
    """The selections to time, with their options."""
    return {
        "uniform": {},
        "weighted": {},
        "power_of_choice": {"d": 10 * cohort},
        "oort": {},
        "tifl": {},
        "fedcs": {"deadline_s": 1e9, "asked": 10 * cohort},
    }


def calls(name: str, options: dict[str, Any], setting: Setting) -> dict[str, Callable[[], Any]]:
    """Functions that choose and learn, by name, after a first choice of all kinds."""
    nothing: Any = None
    bare = Algorithm(
        name=name,
        init=nothing,
        plan=nothing,
        mask=None,
        local=nothing,
        merge=Aggregator(nothing, nothing, nothing),
        update=nothing,
        pace=barrier(),
        cohort_size=setting.cohort,
    )
    selection = Selection(select.SELECTIONS[name](**options)(bare), setting.samples)
    n = len(setting.samples)
    everyone, rng = Pool(population=n), np.random.default_rng(1)
    half = np.flatnonzero(rng.random(n) < 0.5)

    def choose() -> np.ndarray:
        return selection.choose(9, 0.0, everyone, setting.cohort, rng, setting.price)

    def refill() -> None:
        work = chosen
        for _ in range(10):
            idle = Pool(population=n, absent=work)
            work = np.append(work, selection.choose(9, 0.0, idle, 1, rng, setting.price))
        selection.observe(lambda: setting.seen(9, work[-10:]))

    selection.observe(lambda: setting.seen(0, half))
    chosen = choose()
    return {
        name: choose,
        f"{name}, learning": lambda: selection.observe(lambda: setting.seen(8, chosen)),
        f"{name}, ten refills and learning": refill,
    }


def measure(clients: int, cohort: int, repeats: int) -> dict[str, Any]:
    """Times of all selections, in turn.

    Args:
      clients: number of clients, all of them available.
      cohort: number of clients to select.
      repeats: turns.
    """
    setting = make_setting(clients, cohort)
    contenders: dict[str, Callable[[], Any]] = {}
    for name, options in choices(cohort).items():
        contenders |= calls(name, options, setting)
    times = harness.interleave(contenders, repeats)
    rows = [
        {
            "name": name,
            "seconds": harness.spread(timed.samples_s)._asdict(),
            "over_uniform": harness.ratios(timed, times["uniform"])._asdict(),
        }
        for name, timed in times.items()
    ]
    return {
        "machine": harness.machine(),
        "clients": clients,
        "cohort": cohort,
        "rows": rows,
    }


def report(results: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [
        (
            row["name"],
            f"{1e3 * row['seconds']['median']:.3f}",
            f"{row['over_uniform']['median']:.2f}",
        )
        for row in results["rows"]
    ]
    return "\n".join(
        [
            harness.describe(results["machine"]),
            f"{results['cohort']} of {results['clients']} clients",
            harness.table(("selection", "ms", "over uniform"), lines),
        ]
    )


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
