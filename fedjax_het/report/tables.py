"""Tables of several runs: time and cost to reach each target, per method over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.report.units import (
    Spread,
    below,
    percent,
    quantity,
    smallest,
    spread,
    target_text,
    times,
)

_COLUMNS_PER_BLOCK = 4
_TARGET_COLUMNS = ("virtual_s", "wall_s", "step", "bytes_up")
_TOTALS = ("virtual_s", "wall_s", "compile_s", "bytes_up", "bytes_down", "flops")


@dataclass(frozen=True)
class TargetResult:
    """The result of a method for one target; spreads are over the seeds that reached it.

    Attributes:
      accuracy: target accuracy.
      reached, seeds: number of seeds that reached it, and number of all seeds.
      virtual_s, wall_s, step, bytes_up: values at the first evaluation at or above the target; None
        if no seed reached it.
      speed_up: mean virtual time of the reference method divided by that of this method; None if
        either did not reach the target.
      best_accuracy: highest accuracy of any seed.
    """

    accuracy: float
    reached: int
    seeds: int
    virtual_s: Spread | None
    wall_s: Spread | None
    step: Spread | None
    bytes_up: Spread | None
    speed_up: float | None
    best_accuracy: float

    @property
    def always(self) -> bool:
        """Whether every seed reached the target."""
        return self.reached == self.seeds

    def time_text(self, like: float | None) -> str:
        """The virtual time with its spread, and the number of seeds if not all reached the target.

        Args:
          like: time in seconds whose unit is used, or None.
        """
        if self.virtual_s is None:
            return f"not reached (best {below(self.best_accuracy, self.accuracy)})"
        text = quantity(self.virtual_s, "s", like)
        return text if self.always else f"{text} ({self.reached} of {self.seeds} seeds)"


@dataclass(frozen=True)
class MethodResult:
    """The results of one method over its seeds; the first method of a comparison is the reference.

    Attributes:
      name: name of the method.
      seeds: seeds of its runs.
      targets: results per target, in rising order of the targets.
      final_accuracy, best_accuracy, worst_decile_accuracy: shares in [0, 1]; the worst decile is
        the mean accuracy of the worst tenth of the clients at the last evaluation. None if not
        recorded.
      totals: virtual_s, wall_s, compile_s, bytes_up, bytes_down, flops of a whole run.
      dropped_share: share of the tasks that the pace dropped.
      nonfinite: number of client updates left out because they were not finite, over all seeds.
    """

    name: str
    seeds: tuple[int, ...]
    targets: tuple[TargetResult, ...]
    final_accuracy: Spread | None
    best_accuracy: Spread | None
    worst_decile_accuracy: Spread | None
    totals: dict[str, Spread | None]
    dropped_share: Spread | None
    nonfinite: int


def check_targets(targets: Sequence[float]) -> tuple[float, ...]:
    """The targets in rising order, each once; raises `InputError` unless all are in (0, 1]."""
    for target in targets:
        require(0 < target <= 1, f"target {target}", "must be in (0, 1]", "write 90 % as 0.9")
    return tuple(sorted({float(target) for target in targets}))


def summarise(
    records: Mapping[str, Sequence[RunRecord]], targets: Sequence[float]
) -> tuple[MethodResult, ...]:
    """The results of each method.

    Args:
      records: runs of each method, one per seed; the first method is the reference.
      targets: test accuracies, shares in (0, 1].

    Raises:
      InputError: for no method, a method without runs, a seed given twice, or runs on different
        data or fleets, which cannot be compared.
    """
    require(len(records) > 0, "records", "is empty", "give at least one method with one run")
    goals = check_targets(targets)
    _check_comparable(records)
    results: list[MethodResult] = []
    for name, runs in records.items():
        reference = results[0].targets if results else None
        results.append(
            MethodResult(
                name=name,
                seeds=tuple(run.summary["seed"] for run in runs),
                targets=tuple(
                    _target_result(runs, goal, reference[i] if reference else None)
                    for i, goal in enumerate(goals)
                ),
                final_accuracy=spread([run.summary["final_accuracy"] for run in runs]),
                best_accuracy=spread([run.summary["best_accuracy"] for run in runs]),
                worst_decile_accuracy=spread([_last_worst_decile(run) for run in runs]),
                totals={key: spread([run.summary[key] for run in runs]) for key in _TOTALS},
                dropped_share=spread(
                    [r.summary["dropped"] / max(r.summary["tasks"], 1) for r in runs]
                ),
                nonfinite=sum(run.summary["nonfinite"] for run in runs),
            )
        )
    return tuple(results)


def _check_comparable(records: Mapping[str, Sequence[RunRecord]]) -> None:
    first = next(iter(records.values()))
    for name, runs in records.items():
        require(len(runs) > 0, f"method {name!r}", "has no run", "give at least one run per method")
        seeds = [run.summary["seed"] for run in runs]
        require(
            len(set(seeds)) == len(seeds),
            f"method {name!r}: seeds {seeds}",
            "hold one twice, which would understate the spread",
            "give each seed once",
        )
        for run in runs:
            for what, ours, theirs in (
                ("data", run.summary["data"]["name"], first[0].summary["data"]["name"]),
                (
                    "number of devices",
                    len(run.summary["device_groups"]),
                    len(first[0].summary["device_groups"]),
                ),
            ):
                if ours != theirs:
                    raise InputError(
                        f"{run.source}: {what} is {ours!r} but {theirs!r} in {first[0].source}; "
                        "compare runs on the same data and fleet"
                    )


def _target_result(
    runs: Sequence[RunRecord], goal: float, reference: TargetResult | None
) -> TargetResult:
    at = {
        column: spread([time_to(run, goal, column) for run in runs]) for column in _TARGET_COLUMNS
    }
    ours = at["virtual_s"]
    base = ours if reference is None else reference.virtual_s
    return TargetResult(
        accuracy=goal,
        reached=len(ours.values) if ours else 0,
        seeds=len(runs),
        **at,
        speed_up=base.mean / ours.mean if ours and base and ours.mean > 0 else None,
        best_accuracy=max(float(run.evaluations()[1].max()) for run in runs),
    )


def _last_worst_decile(run: RunRecord) -> float | None:
    values = run.column("client_accuracy_worst_decile")
    values = values[np.isfinite(values)]
    return float(values[-1]) if values.size else None


def table_rows(results: Sequence[MethodResult]) -> list[tuple[str, list[str]]]:
    """The rows of the comparison table: a label and one text cell per method."""
    several = len(results) > 1
    rows = [("seeds", [", ".join(map(str, r.seeds)) for r in results])]
    for i, target in enumerate(results[0].targets):
        at = target_text(target.accuracy)
        like = smallest(r.targets[i].virtual_s for r in results)
        rows += [
            (f"virtual time to {at}", [r.targets[i].time_text(like) for r in results]),
            *([(f"  speed-up over {results[0].name}", _speed_ups(results, i))] if several else []),
            ("  server steps", [_plain(r.targets[i].step) for r in results]),
            (
                "  sent by devices until then",
                _quantities([r.targets[i].bytes_up for r in results], "B"),
            ),
        ]
    rows += [
        ("final accuracy", [percent(r.final_accuracy) for r in results]),
        ("best accuracy", [percent(r.best_accuracy) for r in results]),
        ("worst-decile client accuracy", [percent(r.worst_decile_accuracy) for r in results]),
        ("tasks dropped", [percent(r.dropped_share, 1) for r in results]),
    ]
    if any(r.nonfinite for r in results):
        rows.append(("updates left out, not finite", [str(r.nonfinite) for r in results]))
    for label, key, kind in (
        ("whole run: virtual time", "virtual_s", "s"),
        ("  sent by devices", "bytes_up", "B"),
        ("  sent to devices", "bytes_down", "B"),
        ("  device work", "flops", "FLOP"),
        ("  wall time, without compiling", "wall_s", "s"),
        ("  compile time", "compile_s", "s"),
    ):
        rows.append((label, _quantities([r.totals[key] for r in results], kind)))
    return rows


def _quantities(values: Sequence[Spread | None], kind: str) -> list[str]:
    """The cells of a row, in one unit."""
    return [quantity(value, kind, smallest(values)) for value in values]


def _plain(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.0f}" if value.std is None else f"{value.mean:.1f} ± {value.std:.1f}"


def _speed_ups(results: Sequence[MethodResult], i: int) -> list[str]:
    cells = ["1 (reference)" if results[0].targets[i].virtual_s else "-"]
    for result in results[1:]:
        target = result.targets[i]
        some = "" if target.always and results[0].targets[i].always else " *"
        cells.append("-" if target.speed_up is None else times(target.speed_up) + some)
    return cells


def table_notes(results: Sequence[MethodResult]) -> list[str]:
    """Notes on the numbers of `table_rows`: what they mean and what they do not show."""
    notes = ["A target is reached at the first evaluation at or above it; nothing is interpolated."]
    if any(len(r.seeds) > 1 for r in results):
        notes.append("± is the sample standard deviation over seeds.")
    if any(len(r.seeds) == 1 for r in results):
        notes.append("One seed shows no spread: small differences may be chance.")
    if len(results) > 1 and results[0].targets:
        notes.append("A speed-up is the ratio of the mean virtual times over the seeds.")
    if any(" *" in cell for _, cells in table_rows(results) for cell in cells):
        notes.append("* over the seeds that reached the target only, which flatters that method.")
    if len({tuple(sorted(r.seeds)) for r in results}) > 1:
        notes.append("The methods ran with different seeds.")
    return notes


def text_table(results: Sequence[MethodResult]) -> str:
    """The comparison as an aligned text table; at most four methods side by side."""
    rows = table_rows(results)
    width = max(len(label) for label, _ in rows)
    blocks = []
    for start in range(0, len(results), _COLUMNS_PER_BLOCK):
        part = slice(start, start + _COLUMNS_PER_BLOCK)
        table = [("", [r.name for r in results[part]])] + [(a, cells[part]) for a, cells in rows]
        widths = [max(len(cells[j]) for _, cells in table) for j in range(len(table[0][1]))]
        lines = [
            "  ".join([label.ljust(width), *(c.rjust(w) for c, w in zip(cells, widths))]).rstrip()
            for label, cells in table
        ]
        lines.insert(1, "-" * (width + sum(widths) + 2 * len(widths)))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(table_notes(results))]) + "\n"


def table_data(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """The entries of `comparison.json`, one per method; spreads with all their values."""
    return [
        {
            "name": r.name,
            "seeds": r.seeds,
            "targets": [
                {
                    "accuracy": t.accuracy,
                    "reached": t.reached,
                    "seeds": t.seeds,
                    "speed_up": t.speed_up,
                    **{column: _data(getattr(t, column)) for column in _TARGET_COLUMNS},
                }
                for t in r.targets
            ],
            "final_accuracy": _data(r.final_accuracy),
            "best_accuracy": _data(r.best_accuracy),
            "worst_decile_accuracy": _data(r.worst_decile_accuracy),
            "dropped_share": _data(r.dropped_share),
            "nonfinite": r.nonfinite,
            **{key: _data(value) for key, value in r.totals.items()},
        }
        for r in results
    ]


def _data(value: Spread | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "std": value.std, "values": value.values}
