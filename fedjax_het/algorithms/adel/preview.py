"""A plan without training: deadlines, batches and chances, as a table, a figure and numbers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_het.algorithms.adel.options import Planned
from fedjax_het.algorithms.adel.planner import Planner, make_planner
from fedjax_het.algorithms.adel.planning import DeadlinePlan, make_plan
from fedjax_het.common.errors import require_known
from fedjax_het.problem import Problem
from fedjax_het.report.style import PALETTE, legend_above, method_style, styled

# Methods whose rounds are planned before they start.
PLANNED = ("adel", "adel_drop", "salf")

_MOST_ROWS = 12


class Preview(NamedTuple):
    """What a run would do, before chance has a say.

    Attributes:
      name: the method.
      plan: deadlines, scale, and the chance that nobody finishes a layer.
      steps: float64[R], step sizes.
      batch: int64[R, n], samples of every client in every round.
      missed: float64[R, n, L], chance that a client misses a layer, input side first.
      power: float64[n], samples x layers per second.
      communication_s: float64[n].
    """

    name: str
    plan: DeadlinePlan
    steps: np.ndarray
    batch: np.ndarray
    missed: np.ndarray
    power: np.ndarray
    communication_s: np.ndarray

    def data(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        plan = {f"plan_{name}": value for name, value in self.plan._asdict().items()}
        return {**{name: v for name, v in self._asdict().items() if name != "plan"}, **plan}


def preview(problem: Problem, name: str, options: Mapping[str, Any]) -> Preview:
    """Plans a run of `adel`, `salf` or `adel_drop` without training anything.

    Args:
      problem: model, data and fleet.
      name: the method.
      options: its options, as they have been checked by `algorithms.build`.
    """
    require_known(name, PLANNED, "method with planned rounds")
    known = {field.name for field in fields(Planned)}
    chosen = {key: value for key, value in options.items() if key in known}
    if name == "adel":
        planner = make_planner(problem, Planned.parse(chosen))
        plan = planner.plan(planner.setting.power)
    else:
        scale = float(options.get("batch_scale", 1.0))
        planner = make_planner(problem, Planned.parse({**chosen, "batch_scale": (scale, scale)}))
        plan = _equal_deadlines(planner)
    setting = planner.setting
    room = setting.largest_batch(plan.deadlines_s, plan.scale)
    everyone = np.arange(problem.num_clients)
    works = [setting.workload(everyone, float(t), plan.scale, room) for t in plan.deadlines_s]
    return Preview(
        name=name,
        plan=plan,
        steps=setting.steps(planner.rounds),
        batch=np.stack([work.batch for work in works]),
        missed=np.stack([setting.missed(everyone, work, setting.power) for work in works]),
        power=setting.power,
        communication_s=setting.communication_s,
    )


def _equal_deadlines(planner: Planner) -> DeadlinePlan:
    scale = planner.limits.scale[0]
    deadlines_s = np.full(planner.rounds, planner.limits.total_s / planner.rounds)
    return make_plan(planner.bound(planner.setting.power), deadlines_s, scale)


def text(shown: Preview) -> str:
    """The plan for a terminal: some rounds, then all clients."""
    plan = shown.plan
    rounds, layers = plan.missed.shape
    lines = [
        f"{shown.name}: {rounds} rounds, {layers} layers, {shown.power.size} clients, "
        f"{np.sum(plan.deadlines_s):.6g} s in all",
        f"batch scale m = {plan.scale:.4g} s per layer, bound {plan.bound:.6g}",
        "",
        "round  deadline (s)  step size   batch min  median     max   layer missed by all: "
        "input side ... output side",
    ]
    picked = np.unique(np.linspace(0, rounds - 1, min(rounds, _MOST_ROWS)).round().astype(int))
    for t in picked:
        batch = shown.batch[t]
        chances = " ".join(f"{p:.1e}" if p >= 1e-99 else "0" for p in plan.missed[t])
        lines.append(
            f"{t + 1:5d}  {plan.deadlines_s[t]:12.4f}  {shown.steps[t]:9.4g}   {batch.min():9d}  "
            f"{np.median(batch):6.0f}  {batch.max():6d}   {chances}"
        )
    lines += [
        "",
        "client     power  communication (s)  batch first..last   misses input layer",
    ]
    for u in range(shown.power.size):
        lines.append(
            f"{u:6d}  {shown.power[u]:8.4g}  {shown.communication_s[u]:17.4g}  "
            f"{shown.batch[0, u]:11d}..{shown.batch[-1, u]:<6d}   {shown.missed[0, u, 0]:18.4f}"
        )
    return "\n".join(lines)


@styled
def figure(shown: Preview) -> Figure:
    """Deadlines per round, batch per client, and the chance that nobody finishes a layer."""
    plan = shown.plan
    rounds, layers = plan.missed.shape
    t = np.arange(1, rounds + 1)
    drawn = Figure(figsize=(10.5, 3.4))
    left, middle, right = drawn.subplots(1, 3)
    left.plot(t, plan.deadlines_s, lw=2, color=PALETTE[0])
    left.set_ylabel("deadline (s)")
    order = np.argsort(shown.power)
    entries = []
    for i, (label, row) in enumerate((("first round", 0), ("last round", rounds - 1))):
        style = method_style(i)
        (points,) = middle.plot(
            shown.power[order], shown.batch[row, order], lw=0, ms=5, **{**style, "linestyle": ""}
        )
        entries.append((label, points))
    middle.set_xlabel("power (samples x layers / s)")
    middle.set_ylabel("batch (samples)")
    middle.set_ylim(bottom=0)
    mesh = right.pcolormesh(
        np.append(t, rounds + 1) - 0.5,
        np.arange(layers + 1) + 0.5,
        plan.missed.T,
        cmap="Blues",
        vmin=0,
        vmax=max(0.5, float(np.max(plan.missed))),
    )
    right.set_ylabel("layer (1 = input side)")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.colorbar(mesh, ax=right, label="missed by everyone")
    for axes in (left, right):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in (left, middle):
        axes.grid(True)
    legend_above(drawn, entries)
    return drawn
