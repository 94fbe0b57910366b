"""The papers' claims beside what came out here, as a table made from stored numbers.

    python -m benchmarks.reproduce.claims
    python -m benchmarks.reproduce.claims --write

`docs/results/data/<paper>.json` has the claims of one paper: a list of objects with the fields of
`Claim`. Their words are written by hand, their values by the programs that measure them (`store`,
which also notes the commit). Between `<!-- claims: <paper> -->` and `<!-- claims: end -->` a page
shows the table of a paper; `--write` renews it, and a test holds it to the data.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from absl import app, flags

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import write_atomic, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
VERDICTS = ("holds", "holds in part", "not here", "cannot be tested here")
_BLOCK = re.compile(r"(<!-- claims: (\w+) -->\n).*?(<!-- claims: end -->)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and what came out here.

    Attributes:
      key: name by which a program stores the values.
      claim: the claim in words.
      paper: the paper's figure.
      check: why the claim can show in this setting, or not.
      form: format of a number, as in `format`.
      values: one number per seed, or one where nothing is drawn.
      verdict: one of `VERDICTS`.
      command: command that measures the values.
      commit: commit of the library that measured them.
    """

    key: str
    claim: str
    paper: str
    check: str
    form: str
    values: tuple[float, ...]
    verdict: str
    command: str
    commit: str

    @property
    def here(self) -> str:
        """The mean of the values, with their sample deviation if they are several."""
        mean = format(float(np.mean(self.values)), self.form)
        if len(self.values) == 1:
            return mean
        return f"{mean} ± {format(float(np.std(self.values, ddof=1)), self.form)}"


def read(path: Path) -> list[Claim]:
    """The claims of a file.

    Raises:
      InputError: for a missing or unknown field, a value of another type, or another verdict.
    """
    return [_claim(path.name, one) for one in read_json(path)]


def _claim(name: str, one: Mapping[str, Any]) -> Claim:
    known = get_type_hints(Claim)
    where = f"claim {one.get('key')!r} of {name}"
    require(
        set(one) == set(known),
        f"{where} with fields {sorted(one)}",
        f"must have {sorted(known)}",
        "see benchmarks/reproduce/claims.py",
    )
    values = one["values"]
    texts = [field.name for field in fields(Claim) if not get_args(known[field.name])]
    require(
        all(isinstance(one[text], str) and one[text] for text in texts)
        and isinstance(values, list)
        and len(values) > 0
        and all(isinstance(value, int | float) and np.isfinite(value) for value in values),
        where,
        "must have words in every field, and finite numbers as values",
        "store the values by the command of the claim",
    )
    require_known(one["verdict"], VERDICTS, f"verdict of {where}")
    return Claim(**{**one, "values": tuple(float(value) for value in values)})


def store(paper: str, measured: Mapping[str, Sequence[float]], root: Path = RESULTS) -> None:
    """Writes the values of claims, with the commit of the library.

    Args:
      paper: name of the file.
      measured: values by key; every key must be a claim of the file.
      root: directory of the results.
    """
    path = root / "data" / f"{paper}.json"
    every = read_json(path)
    for key, values in measured.items():
        require_known(key, [one["key"] for one in every], f"claim of {path.name}")
        [one] = [one for one in every if one["key"] == key]
        one |= {"values": [float(value) for value in values], "commit": commit()}
    write_json(path, every)
    read(path)


def commit() -> str:
    """The commit that is checked out, marked if files other than the results differ from it."""
    root = RESULTS.parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    results = f":(exclude){RESULTS.relative_to(root)}"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", results)
    return git("rev-parse", "--short=7", "HEAD") + ("-dirty" if changed else "")


def table(claims: Sequence[Claim]) -> str:
    """The claims as Markdown."""
    lines = [
        "| claim | paper | here | can it show? | verdict | command | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in claims:
        cells = (one.claim, one.paper, one.here, one.check, one.verdict, f"`{one.command}`")
        lines.append(f"| {' | '.join(cells)} | {one.commit} |")
    return "\n".join(lines)


def filled(page: str, root: Path = RESULTS) -> str:
    """A page whose tables of claims are those of the data."""

    def block(found: re.Match[str]) -> str:
        claims = read(root / "data" / f"{found[2]}.json")
        return f"{found[1]}{table(claims)}\n{found[3]}"

    return _BLOCK.sub(block, page)


def main(_: Sequence[str]) -> None:
    """Prints the tables of all papers, and renews the pages if asked to."""
    for path in sorted((RESULTS / "data").glob("*.json")):
        print(f"\n{path.stem}\n\n{table(read(path))}")
    if flags.FLAGS.write:
        for page in sorted(RESULTS.glob("*.md")):
            write_atomic(page, filled(page.read_text()).encode())


if __name__ == "__main__":
    flags.DEFINE_bool("write", False, "Whether to renew the tables of the pages.")
    app.run(main)
