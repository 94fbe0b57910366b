"""Kills at random moments, resumed until the run ends, and compared with an undisturbed run.

    python -m benchmarks.faults.kills --minutes=5 [--seed=0]
    python -m benchmarks.faults.kills --cases=300        # about a thousand kills

A case is one run of one setting through the launcher. It is killed several times, with SIGKILL, and
resumed each time: either at a moment that is uniform over the life of a run, by the processor time
that it takes, which includes the start, or exactly at one of the run's operations on files, which
includes every stage of a checkpoint. Then it is finished. Rows, summary and parameters must be
those of an undisturbed run, bit for bit, apart from wall times. Of every fourth case the finished
run is started once more, which changes nothing.
"""

import functools
import math
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.faults import processes
from benchmarks.faults.campaign import Campaign, Case, Verdict, failure, generator, main
from benchmarks.faults.disk import OPERATIONS, Disk, failing
from benchmarks.faults.runs import LIMIT_S, SETTINGS, Runs, complaint, differing, left

# Kills of a run, as far as it does not end before.
_LEAST, _MOST = 3, 9
# Share of the cases in which the finished run is started again.
_AGAIN = 0.25


def generate(seed: int, number: int) -> Case:
    """A setting, in turn, and the moments of the kills.

    A moment is a share of a life, or a share of the operations of one name, e.g. of the renames. A
    resumed run has less before it: its moments lie in the first half.
    """
    rng = generator(seed, number)
    names = sorted(SETTINGS)
    moments = [
        [
            "life" if rng.integers(2) else str(rng.choice(OPERATIONS)),
            round(float(rng.random() * (0.5 if resumed else 1.0)), 6),
        ]
        for resumed in range(rng.integers(_LEAST, _MOST + 1))
    ]
    return {"setting": names[number % len(names)], "seed": 0, "moments": moments}


def run(runs: Runs, case: Case) -> Verdict:
    """Kills and resumes a run, and compares what it leaves."""
    setting, seed = case["setting"], case["seed"]
    whole, place = runs.undisturbed(setting, seed), runs.workdir()
    kills = Counter[str]()
    for how, share in case["moments"]:
        before, used_s = (lambda: None), 1.05 * share * whole.used_s
        if how != "life":
            fault = failing("killed", how, int(share * whole.operations.count(how)))
            before, used_s = Disk(place, fault).install, math.inf
        ended = runs.start(setting, seed, place, before).kill_after(used_s, LIMIT_S)
        if ended is None or ended.code == -signal.SIGKILL:
            kills[how] += 1
        elif ended.code != 0:
            return failure(
                complaint(ended), f"after {sum(kills.values())} kills: {ended.output[-200:]}"
            )
        else:
            break
    total = sum(kills.values())
    told = {"kills": total, "kills_at_operations": total - kills["life"]}
    # A run that has ended is started once more, which changes nothing.
    for what in ("resumed", "started again") if case["moments"][0][1] < _AGAIN else ("resumed",):
        ended = runs.finish(setting, seed, place)
        if ended.code != 0:
            return failure(complaint(ended), f"{what}: {ended.output[-200:]}", **told)
        if names := differing(left(place), whole.left):
            return failure(f"{what}: {names} differ", setting, **told)
    return Verdict("equal", counts=told)


def smaller(case: Case) -> Iterator[Case]:
    """The case with fewer kills."""
    moments: list[Any] = case["moments"]
    for at in range(len(moments)):
        if len(moments) > 1:
            yield {**case, "moments": [*moments[:at], *moments[at + 1 :]]}


if __name__ == "__main__":
    processes.freeze()
    with Runs("kills") as all_runs:
        one = functools.partial(run, all_runs)
        main(Campaign("kills", __doc__, generate, one, smaller, per="kills"))
