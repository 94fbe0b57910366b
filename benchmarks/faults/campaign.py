"""The parts that all campaigns share: seeds, time bound, log of cases, shrinking, kept cases.

A campaign is a function from `(seed, number)` to a case, which holds JSON values only, and a
function from a case to a `Verdict`. A case depends on nothing but its seed and number, so that any
of them can be run alone (`--only=N`). Every case is a line of the log; a campaign that is started
again continues after the cases in its log. The first failure of every kind is shrunk and kept in
`tests/faults/<name>.json`, which the tests and `--replay` run.
"""

import argparse
import contextlib
import itertools
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "faults"
PACKAGE = ROOT / "fedjax_het"
# A shrinking stops after so many attempts, or seconds.
_ATTEMPTS, _SHRINKING_S = 40, 60.0
_SHOWN = 300

Case = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
      outcome: kind of the outcome in few words, e.g. "ran" or "refused"; failures with the same
        outcome are of one kind.
      failed: whether the outcome breaks a promise.
      detail: what happened, one line.
      counts: amounts to sum over the cases, e.g. `{"kills": 3}`.
    """

    outcome: str
    failed: bool = False
    detail: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)


def failure(outcome: str, detail: str = "", **counts: float) -> Verdict:
    """The verdict of a case that breaks a promise."""
    return Verdict(outcome, True, short(detail), counts)


def short(text: str, most: int = _SHOWN) -> str:
    """The text in one line of at most `most` characters that any file can hold."""
    line = " ".join(str(text)[: 20 * most].split()).encode("ascii", "backslashreplace").decode()
    return line if len(line) <= most else f"{line[: most - 3]}..."


def kind_of(error: BaseException) -> str:
    """Type of an exception and the place in the package that it comes from, without line number."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        with contextlib.suppress(ValueError):
            name = Path(frame.filename).resolve().relative_to(PACKAGE)
            place = f" in {name}: {frame.name}"
    return f"{type(error).__name__}{place}"


def generator(seed: int, number: int) -> np.random.Generator:
    """The generator of a case."""
    return np.random.default_rng((seed, number))


@dataclass(frozen=True)
class Campaign:
    """A campaign.

    Attributes:
      name: name of the module, of the log and of the file of kept cases.
      title: first line of the help.
      generate: function `(seed, number) -> case`.
      run: function `case -> Verdict`.
      smaller: function from a case to simpler cases to try in its place, most promising first.
      per: unit of the rate in the report, one of the counts or "cases".
    """

    name: str
    title: str
    generate: Callable[[int, int], Case]
    run: Callable[[Case], Verdict]
    smaller: Callable[[Case], Iterable[Case]] = lambda case: ()
    per: str = "cases"

    def judged(self, case: Case) -> Verdict:
        """The verdict; an exception in the campaign itself is a failure too."""
        try:
            return self.run(case)
        except Exception as error:
            return failure(f"campaign: {kind_of(error)}", repr(error))

    def shrunk(self, case: Case, outcome: str) -> Case:
        """The smallest case found that fails in the same way."""
        attempts, until = itertools.count(), time.monotonic() + _SHRINKING_S
        while True:
            for candidate in self.smaller(case):
                if next(attempts) >= _ATTEMPTS or time.monotonic() > until:
                    return case
                verdict = self.judged(candidate)
                if verdict.failed and verdict.outcome == outcome:
                    case = candidate
                    break
            else:
                return case


class Log:
    """The cases that were run, one JSON object a line; an incomplete last line is cut.

    Args:
      path: path of the file; its directory is made.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: dict[str, Any]) -> None:
        """Appends a case."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def kept(name: str) -> list[dict[str, Any]]:
    """The kept cases of a campaign, each with `case`, `outcome` and perhaps `open`."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def _keep(name: str, cases: list[dict[str, Any]]) -> None:
    path = KEPT / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def main(campaign: Campaign, arguments: list[str] | None = None) -> None:
    """Runs a campaign from the command line; exit status 1 if a case failed."""
    parser = argparse.ArgumentParser(description=campaign.title)
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--cases", type=int, help="stop when the log has this many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case of the seed alone, and print it")
    parser.add_argument("--replay", action="store_true", help="run the kept cases")
    parser.add_argument("--keep", action="store_true", help="keep failures of a new kind")
    parser.add_argument("--log", type=Path, help="log to continue")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    given = parser.parse_args(arguments)
    if given.only is not None:
        case = campaign.generate(given.seed, given.only)
        print(json.dumps(case), *asdict(campaign.judged(case)).values(), sep="\n")
        return
    if given.replay:
        sys.exit(_replay(campaign))
    if given.minutes is None and given.cases is None:
        parser.error("give --minutes or --cases")
    log = Log(given.log or Path(f"runs/faults/{campaign.name}-{given.seed}.jsonl"))
    print(f"{campaign.name}: seed {given.seed}, {len(log.rows)} cases in the log", flush=True)
    _run(campaign, log, given.seed, given.minutes, given.cases, given.keep)
    found = _summary(campaign, log.rows, given.seed)
    print(_text(campaign, found))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if found["failures"] else 0)


def _numbers(log: Log, cases: int | None) -> Iterator[int]:
    """Numbers of the cases that are not in the log."""
    done = {row["number"] for row in log.rows}
    for number in itertools.count():
        if cases is not None and len(log.rows) >= cases:
            return
        if number not in done:
            yield number


def _run(
    campaign: Campaign, log: Log, seed: int, minutes: float | None, cases: int | None, keep: bool
) -> None:
    begin = time.monotonic()
    known = {row["outcome"] for row in log.rows if row["failed"]}
    if keep:
        known |= {each["outcome"] for each in kept(campaign.name)}
    for number in _numbers(log, cases):
        if minutes is not None and time.monotonic() - begin > 60 * minutes:
            return
        case = campaign.generate(seed, number)
        start = time.monotonic()
        verdict = campaign.judged(case)
        row: dict[str, Any] = {"number": number, **asdict(verdict)}
        if verdict.failed and verdict.outcome not in known:
            known.add(verdict.outcome)
            row["smallest"] = campaign.shrunk(case, verdict.outcome)
            print(f"case {number}: {verdict.outcome}: {verdict.detail}", flush=True)
            print(f"  {short(json.dumps(row['smallest']))}", flush=True)
            if keep:
                each = {"case": row["smallest"], "outcome": verdict.outcome}
                _keep(campaign.name, [*kept(campaign.name), each])
        row["seconds"] = round(time.monotonic() - start, 3)
        log.add(row)


def _replay(campaign: Campaign) -> int:
    """Number of kept cases that fail."""
    failed = 0
    for number, each in enumerate(kept(campaign.name)):
        verdict = campaign.judged(each["case"])
        failed += verdict.failed
        told = f"FAILS: {verdict.outcome}: {verdict.detail}" if verdict.failed else verdict.outcome
        print(f"kept case {number} ({each['outcome']}): {told}", flush=True)
    return failed


def _summary(campaign: Campaign, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Figures over all cases in the log."""
    counts: Counter[str] = Counter(cases=len(rows))
    for row in rows:
        counts.update(row["counts"])
    seconds = sum(row["seconds"] for row in rows)
    outcomes = Counter(row["outcome"] for row in rows if not row["failed"])
    kinds = Counter(row["outcome"] for row in rows if row["failed"])
    first = {row["outcome"]: row for row in reversed(rows) if row["failed"]}
    return {
        "campaign": campaign.name,
        "seed": seed,
        "seconds": round(seconds, 1),
        "per_minute": round(60 * counts[campaign.per] / seconds, 2) if seconds else 0.0,
        **counts,
        "outcomes": dict(outcomes.most_common()),
        "failures": [
            {"outcome": kind, "cases": number, **_told(first[kind])}
            for kind, number in kinds.most_common()
        ],
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("number", "detail", "smallest") if name in row}


def _text(campaign: Campaign, found: dict[str, Any]) -> str:
    counted = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and name not in ("seed", "seconds", "per_minute")
    }
    amounts = ", ".join(f"{value:g} {name}" for name, value in counted.items())
    lines = [
        f"{campaign.name}, seed {found['seed']}: {amounts} in {found['seconds'] / 60:.1f} minutes "
        f"({found['per_minute']:g} {campaign.per} a minute)",
        *(f"  {number:6d}  {outcome}" for outcome, number in found["outcomes"].items()),
    ]
    failed = sum(each["cases"] for each in found["failures"])
    lines.append(f"{failed} failures of {len(found['failures'])} kinds")
    for each in found["failures"]:
        lines.append(f"  {each['cases']:6d}  {each['outcome']} (case {each['number']})")
        lines.append(f"          {each['detail']}")
    return "\n".join(lines)
