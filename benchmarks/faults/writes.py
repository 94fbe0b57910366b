"""Faults of the disk during a run, and damage between a kill and the resumption.

    python -m benchmarks.faults.writes --minutes=5 [--seed=0]

A case is one run of one setting through the launcher. Either the disk fails at one of its
operations (full, read-only, torn writes, errors), once or from there on, or files may not grow
beyond a size, in native code too; or the run is killed and one of its files is damaged. The process
must end well or with one line. Then the run is started again without a fault: it must leave what an
undisturbed run leaves, bit for bit, or refuse in one line that says what to do. A run that refuses
because of a damaged file must still succeed in a directory of its own.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import processes
from benchmarks.faults.campaign import Campaign, Case, Verdict, failure, generator, main
from benchmarks.faults.disk import ERRORS, OPERATIONS, Disk, failing, limit_files
from benchmarks.faults.runs import LIMIT_S, SETTINGS, Runs, complaint, differing, left, refusal

_KINDS = (*ERRORS, "torn", "long files", "damage", "damage")
DAMAGES = ("flip", "truncate", "empty", "delete", "append", "zeros")


def generate(seed: int, number: int) -> Case:
    """A setting, in turn, and a fault."""
    rng = generator(seed, number)
    names = sorted(SETTINGS)
    case: Case = {"setting": names[number % len(names)], "kind": str(rng.choice(_KINDS))}
    case["share"] = round(float(rng.random()), 6)
    if case["kind"] == "long files":
        case["bytes"] = int(10 ** rng.uniform(2, 5))
    elif case["kind"] == "damage":
        case["how"] = str(rng.choice(DAMAGES))
        case["damage"] = int(rng.integers(2**31))
    else:
        case["what"] = str(rng.choice(OPERATIONS))
        case["forever"] = bool(rng.integers(2))
    return case


def run(runs: Runs, case: Case) -> Verdict:
    """Runs with the fault, then without."""
    setting, kind = case["setting"], case["kind"]
    whole, place = runs.undisturbed(setting, 0), runs.workdir()
    before: Any = functools.partial(limit_files, case.get("bytes", 0))
    if kind == "damage":
        ended = runs.start(setting, 0, place, lambda: None).kill_after(
            case["share"] * whole.used_s, LIMIT_S
        )
        if ended is not None and ended.code != 0:
            return failure(f"unkilled: {complaint(ended)}", ended.output[-300:])
        if (name := damage(place, case["how"], case["damage"])) is None:
            return Verdict("killed before it had files")
    else:
        if kind != "long files":
            at = int(case["share"] * whole.operations.count(case["what"]))
            before = Disk(place, failing(kind, case["what"], at, case["forever"])).install
        ended = runs.start(setting, 0, place, before).wait(LIMIT_S)
        name = case.get("what", "")
        if ended.code != 0 and refusal(ended) is None:
            return failure(f"{kind}: {complaint(ended)}", f"{name}: {ended.output[-300:]}")
    again = runs.finish(setting, 0, place)
    if again.code == 0:
        if names := differing(left(place), whole.left):
            return failure(f"{kind}: {names} differ afterwards", f"{case.get('how', '')} {name}")
        return Verdict(f"{kind}: equal afterwards")
    if refusal(again) is None:
        told = f"{case.get('how', '')} {name}: {again.output[-300:]}"
        return failure(f"{kind}, then {complaint(again)}", told)
    if kind != "damage":
        return failure(f"{kind}: refused without the fault", f"{name}: {refusal(again)}")
    return Verdict("damage: refused")


def damage(place: Path, how: str, seed: int) -> str | None:
    """Damages one file below a directory; returns its name, None if there is none."""
    rng = np.random.default_rng(seed)
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else []
    if not files:
        return None
    # A kind of file first, because a checkpoint has many.
    kinds = sorted({path.name for path in files})
    name = str(rng.choice(kinds))
    path = files[int(rng.choice([i for i, p in enumerate(files) if p.name == name]))]
    spoil(path, how, rng)
    return str(path.relative_to(place))


def spoil(path: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a file in one of the ways `DAMAGES`."""
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    at = int(rng.integers(len(content))) if content else 0
    if how == "flip" and content:
        content[at] ^= 1 << int(rng.integers(8))
    elif how == "truncate":
        del content[at:]
    elif how == "empty":
        content.clear()
    elif how == "append":
        content += rng.bytes(int(rng.integers(1, 100)))
    elif how == "zeros":
        content[at:] = bytes(len(content) - at)
    path.write_bytes(content)


def smaller(case: Case) -> Iterator[Case]:
    """The same fault on the plainest setting, and once in place of for good."""
    if case["setting"] != "blocks of rounds":
        yield {**case, "setting": "blocks of rounds"}
    if case.get("forever"):
        yield {**case, "forever": False}


if __name__ == "__main__":
    processes.freeze()
    with Runs("writes") as all_runs:
        main(Campaign("writes", __doc__, generate, functools.partial(run, all_runs), smaller))
