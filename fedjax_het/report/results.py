"""Results of several runs: time and cost to reach each target, per method over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.report.clients import ClientSummary, client_summary
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.optimisers import training_of
from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.report.submodels import final_local, final_submodels
from fedjax_het.report.units import Spread, quantity, spread

TARGET_COLUMNS = ("virtual_s", "wall_s", "step", "bytes_up", "joules")
_TOTALS = ("virtual_s", "wall_s", "compile_s", "bytes_up", "bytes_down", "flops", "joules")


@dataclass(frozen=True)
class TargetResult:
    """The result of a method for one target; spreads are over the seeds that reached it.

    Attributes:
      goal: value of the target metric to reach.
      reached, seeds: number of seeds that reached it, and number of all seeds.
      virtual_s, wall_s, step, bytes_up, joules: values at the first evaluation at the target or
        better; None if no seed reached it, or, for joules, if the fleet prices no energy.
      speed_up: mean virtual time of the reference method divided by that of this method; None if
        either did not reach the target.
      best: best value of any seed.
    """

    goal: float
    reached: int
    seeds: int
    virtual_s: Spread | None
    wall_s: Spread | None
    step: Spread | None
    bytes_up: Spread | None
    speed_up: float | None
    best: float
    joules: Spread | None = None

    @property
    def always(self) -> bool:
        """Whether every seed reached the target."""
        return self.reached == self.seeds

    def time_text(self, metric: MetricInfo, like: float | None) -> str:
        """The virtual time with its spread, and the number of seeds if not all reached the target.

        Args:
          metric: target metric.
          like: time in seconds whose unit is used, or None.
        """
        if self.virtual_s is None:
            return f"not reached (best {metric.missed(self.best, self.goal)})"
        text = quantity(self.virtual_s, "s", like)
        return text if self.always else f"{text} ({self.reached} of {self.seeds} seeds)"


@dataclass(frozen=True)
class MethodResult:
    """The results of one method over its seeds; the first method of a comparison is the reference.

    Attributes:
      name: name of the method.
      metric: target metric.
      seeds: seeds of its runs.
      targets: results per target, from the easiest to the hardest.
      final, best, worst_decile: values of the target metric; the worst decile is the mean over the
        worst tenth of the clients at the last evaluation. None if not recorded.
      totals: virtual_s, wall_s, compile_s, bytes_up, bytes_down, flops of a whole run, and joules
        if the fleet prices energy.
      dropped_share: share of the tasks that the pace dropped.
      nonfinite: number of client updates left out because they were not finite, over all seeds.
      clients: the target metric over the clients; None if they were not evaluated one by one.
      training: options of the clients' optimiser, of the first seed; see `optimisers.training_of`.
      failed_share: share of the tasks that failed on their devices.
      wasted_flops_share, wasted_bytes_share: share of the devices' FLOPs, and of the bytes sent in
        both directions, that was spent on tasks that were not merged.
      submodels: final values of the target metric of the sub-models by name.
      local: final mean over the clients of the target metric of their own kind of sub-model; None
        if not recorded.
    """

    name: str
    metric: MetricInfo
    seeds: tuple[int, ...]
    targets: tuple[TargetResult, ...]
    final: Spread | None
    best: Spread | None
    worst_decile: Spread | None
    totals: dict[str, Spread | None]
    dropped_share: Spread | None
    nonfinite: int
    clients: ClientSummary | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    failed_share: Spread | None = None
    wasted_flops_share: Spread | None = None
    wasted_bytes_share: Spread | None = None
    submodels: Mapping[str, Spread | None] = field(default_factory=dict)
    local: Spread | None = None

    @property
    def priced(self) -> bool:
        """Whether the fleet prices energy."""
        return "joules" in self.totals


def summarise(
    records: Mapping[str, Sequence[RunRecord]], targets: Sequence[float]
) -> tuple[MethodResult, ...]:
    """The results of each method.

    Args:
      records: runs of each method, one per seed; the first method is the reference.
      targets: values of the target metric; of an accuracy shares in (0, 1].

    Raises:
      InputError: for no method, a method without runs, a seed given twice, or runs on different
        data or fleets or with different metrics, which cannot be compared, or a target that is no
        value of the metric.
    """
    require(len(records) > 0, "records", "is empty", "give at least one method with one run")
    _check_comparable(records)
    metric = next(iter(records.values()))[0].metric
    goals = metric.rising(targets)
    results: list[MethodResult] = []
    for name, runs in records.items():
        reference = results[0].targets if results else None
        results.append(
            MethodResult(
                name=name,
                metric=metric,
                seeds=tuple(run.summary["seed"] for run in runs),
                targets=tuple(
                    _target_result(runs, goal, reference[i] if reference else None)
                    for i, goal in enumerate(goals)
                ),
                final=spread([run.final for run in runs]),
                best=spread([run.best for run in runs]),
                worst_decile=spread([_last_worst_decile(run) for run in runs]),
                totals={
                    key: spread([run.summary[key] for run in runs])
                    for key in _TOTALS
                    if key in runs[0].summary
                },
                dropped_share=spread(
                    [r.summary["dropped"] / max(r.summary["tasks"], 1) for r in runs]
                ),
                failed_share=spread(
                    [r.summary.get("failed", 0) / max(r.summary["tasks"], 1) for r in runs]
                ),
                wasted_flops_share=spread([wasted_shares(run)[0] for run in runs]),
                wasted_bytes_share=spread([wasted_shares(run)[1] for run in runs]),
                nonfinite=sum(run.summary["nonfinite"] for run in runs),
                clients=client_summary(runs),
                training=training_of(runs[0].config),
                submodels=final_submodels(runs),
                local=final_local(runs),
            )
        )
    return tuple(results)


def wasted_shares(run: RunRecord) -> tuple[float, float]:
    """Shares of the FLOPs and of the bytes that were spent on tasks that were not merged.

    A dropped task counts with its whole work and its download; its upload does not take place. A
    probe belongs to the whole, and is not lost.
    """
    status = np.asarray([row["status"] for row in run.clients])
    flops, down, up = (
        np.asarray([row[name] for row in run.clients], np.float64)
        for name in ("flops", "bytes_down", "bytes_up")
    )
    lost = ~np.isin(status, ("merged", "partial", "probed"))
    moved = down + np.where(status == "dropped", 0.0, up)
    return _part(flops, lost), _part(moved, lost)


def _part(amount: np.ndarray, chosen: np.ndarray) -> float:
    total = float(np.sum(amount))
    return float(np.sum(amount[chosen])) / total if total > 0 else 0.0


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
                    run.summary["num_clients"],
                    first[0].summary["num_clients"],
                ),
                ("target metric", _metric_text(run), _metric_text(first[0])),
                ("energy of tasks", _energy_text(run), _energy_text(first[0])),
            ):
                if ours != theirs:
                    raise InputError(
                        f"{run.source}: {what} is {ours!r} but {theirs!r} in {first[0].source}; "
                        "compare runs on the same data and fleet, with the same metric"
                    )


def _metric_text(run: RunRecord) -> str:
    """Name and direction of the target metric, which runs of a comparison share."""
    direction = "higher" if run.metric.higher_is_better else "lower"
    return f"{run.metric.name}, {direction} is better"


def _energy_text(run: RunRecord) -> str:
    return "recorded" if run.priced else "not recorded"


def _target_result(
    runs: Sequence[RunRecord], goal: float, reference: TargetResult | None
) -> TargetResult:
    columns = [name for name in TARGET_COLUMNS if name != "joules" or runs[0].priced]
    at: dict[str, Spread | None] = dict.fromkeys(TARGET_COLUMNS)
    at |= {name: spread([time_to(run, goal, name) for run in runs]) for name in columns}
    ours = at["virtual_s"]
    base = ours if reference is None else reference.virtual_s
    return TargetResult(
        goal=goal,
        reached=len(ours.values) if ours else 0,
        seeds=len(runs),
        **at,
        speed_up=base.mean / ours.mean if ours and base and ours.mean > 0 else None,
        best=runs[0].metric.best(np.concatenate([run.evaluations()[1] for run in runs])),
    )


def _last_worst_decile(run: RunRecord) -> float | None:
    values = run.column(f"client_{run.metric.name}_worst_decile")
    values = values[np.isfinite(values)]
    return float(values[-1]) if values.size else None
