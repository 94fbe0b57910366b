"""Configurations of which some options are changed: two rounds, or one line that says why not.

    python -m benchmarks.faults.configurations --minutes=5 [--seed=0]
    python -m benchmarks.faults.configurations --cases=10000

A case is a tiny configuration of one registered method, perhaps with a transformation or another
data set, fleet, network or partition, of which one to three options are changed to values of their
type or to hostile ones. It runs two rounds or is refused with an `InputError` of one line that
names the value, the limit and the remedy, before 60 s are over. Of a run that ends, the rules are:

* every row of steps and tasks and the summary pass the checks of records and the audit;
* the model and the measured losses and metrics of its steps are finite, or a diverged loss is null;
  a share lies in [0, 1]; the virtual clock never goes back, has moved at the
  end, and stays below 1e15 s;
* a merged task trained samples in steps, and what it is charged for a sample lies within a factor
  of 10,000 of the network's price.
"""

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.faults import judging, processes, tiny
from benchmarks.faults.campaign import Campaign, Case, Verdict, failure, generator, main
from benchmarks.faults.options import changes, value_of
from benchmarks.faults.processes import Ended, Worker

# Cases are made in blocks, each from so many examples of hypothesis for one case.
_BLOCK, _OF = 50, 6
_ROUNDS = 2
_MOST_STEPS = 20_000
_LIMIT_S = 60.0


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    case: Case = {"method": draw(st.sampled_from(tiny.METHODS))}
    parts = {"data": tiny.DATA, "fleet": tiny.FLEETS, "model": tiny.MODELS}
    parts |= {"partition": tiny.PARTITIONS, "compose": tiny.TRANSFORMATIONS}
    # Half of the cases keep the method's own parts.
    if draw(st.booleans()):
        part = draw(st.sampled_from(sorted(parts)))
        case[part] = draw(st.sampled_from(sorted(parts[part])))
    if (kind := draw(st.integers(0, 14))) < 2:
        case[("workdir", "comparison")[kind]] = True
    case["changes"] = draw(changes(base(case)))
    return case


@functools.lru_cache(maxsize=4)
def _block(number: int, block: int) -> list[Case]:
    """Cases of different options; most examples of hypothesis resemble the one before."""
    found: dict[str, Case] = {}

    @seed(number * 1_000_003 + block)
    @settings(
        max_examples=_OF * _BLOCK,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_cases())
    def collect(case: Case) -> None:
        paths = sorted(path for path, _ in case["changes"])
        found.setdefault(f"{case['method']} {paths}", case)

    collect()
    cases = list(found.values())
    order = generator(number, block).permutation(len(cases))
    return [cases[i] for i in order[:_BLOCK]]


def generate(seed: int, number: int) -> Case:
    """A configuration and its changes."""
    cases = _block(seed, number // _BLOCK)
    return cases[number % _BLOCK % len(cases)]


def base(case: Case) -> dict[str, Any]:
    """The configuration of a case before its changes."""
    config = tiny.config(case["method"])
    if "data" in case:
        config |= json.loads(json.dumps(tiny.DATA[case["data"]]))
    if "fleet" in case:
        config["fleet"] = dict(tiny.FLEETS[case["fleet"]])
    if "model" in case:
        config["model"] = {
            **tiny.MODELS[case["model"]],
            "exits": config["model"].get("exits", False),
        }
    if "partition" in case:
        config["data"]["partition"] = dict(tiny.PARTITIONS[case["partition"]])
    if "compose" in case:
        name = case["compose"]
        config["algorithm"]["compose"] = [{"name": name, **tiny.TRANSFORMATIONS[name]}]
    if "comparison" in case:
        config["compare"] = {"methods": {"A": {}}}
    return config


def changed(case: Case) -> dict[str, Any]:
    """The configuration of a case."""
    config = base(case)
    if any(path.startswith("objective.") for path, _ in case["changes"]):
        config.setdefault("objective", {"name": "classification"})
    for path, spec in case["changes"]:
        *outer, last = path.split(".")
        place: Any = config
        for name in outer:
            if isinstance(place, list):
                place = place[int(name)] if name.isdigit() and int(name) < len(place) else None
            elif isinstance(place, dict):
                if not isinstance(place.get(name), dict | list):
                    place[name] = {}
                place = place[name]
        # An earlier change may have put a list where this one expects options.
        if isinstance(place, dict):
            place[last] = value_of(spec)
    return config


def answer(case: Case) -> Verdict:
    """The verdict, in a process of its own."""
    built = case.get("model") in tiny.BUILT_ONLY
    return judging.verdict(changed(case), "workdir" in case, built, _ROUNDS, _MOST_STEPS)


def smaller(case: Case) -> Iterator[Case]:
    """Fewer changes, the method's own parts, a plain method."""
    made = case["changes"]
    for at in range(len(made)):
        if len(made) > 1:
            yield {**case, "changes": [*made[:at], *made[at + 1 :]]}
    for name in ("workdir", "comparison", "compose", "data", "fleet", "model", "partition"):
        if name in case:
            yield {key: value for key, value in case.items() if key != name}
    if case["method"] != "fedavg":
        yield {**case, "method": "fedavg"}
    for at, (path, spec) in enumerate(made):
        if isinstance(spec, list) and len(spec) > 1:
            for less in range(len(spec)):
                rest = [*spec[:less], *spec[less + 1 :]]
                yield {**case, "changes": [*made[:at], [path, rest], *made[at + 1 :]]}


def run(worker: Worker, case: Case) -> Verdict:
    """The worker's verdict, or that it hung or died."""
    told = worker.ask(case)
    if not isinstance(told, Ended):
        return told
    what = "hangs" if told.code is None else f"the process ends with {told.code}"
    return failure(f"{what}: {', '.join(path for path, _ in case['changes'])}", told.output[-300:])


if __name__ == "__main__":
    processes.freeze()
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as place,
        Worker(answer, Path(place) / "output.txt", _LIMIT_S) as worker,
    ):
        one = functools.partial(run, worker)
        main(Campaign("configurations", __doc__, generate, one, smaller))
