"""The headline: the method that reached the target first, with no stronger claim than is justified.

If two methods reached a target with every seed, one is *ahead* if the intervals mean ± standard
deviation of their virtual times do not overlap and the means differ by at least half a percent;
otherwise they are tied. A method of which only some seeds reached the target has no rank, because
its mean would leave out the worst runs.
"""

from collections.abc import Sequence
from functools import partial

from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.report.results import MethodResult, TargetResult
from fedjax_het.report.units import Spread, quantity, times

_MOST_NAMED = 3
_SAME = 0.005
_COSTS = (
    ("on the least energy", "joules", "J"),
    ("on the least traffic", "bytes_up", "B"),
    ("in the least time", "virtual_s", "s"),
)
Entry = tuple[MethodResult, TargetResult]


def tied(a: Spread, b: Spread) -> bool:
    """Whether the intervals mean ± std overlap (std 0 for one seed) or the means hardly differ."""
    spreads = (a.std or 0.0) + (b.std or 0.0)
    return abs(a.mean - b.mean) <= max(spreads, _SAME * max(a.mean, b.mean))


def headline(results: Sequence[MethodResult]) -> str:
    """A few sentences on the hardest target that any method reached with every seed."""
    if not results[0].targets:
        return f"No target was set; {_best(results)}."
    columns = [[(r, r.targets[i]) for r in results] for i in range(len(results[0].targets))]
    ranked = [i for i, column in enumerate(columns) if any(t.always for _, t in column)]
    if ranked:
        harder = columns[ranked[-1] + 1 :]
        sentences = [_ranking(columns[ranked[-1]]), *(_missed(c, False) for c in harder)]
        if results[0].priced and len(results) > 1:
            sentences.insert(1, cheapest(results, ranked[-1]))
    else:
        sentences = [*(_missed(c, True) for c in columns), f"{_capital(_best(results))}."]
    if any(len(r.seeds) == 1 for r in results) and len(results) > 1:
        single = [r.name for r in results if len(r.seeds) == 1]
        who = "Each method" if len(single) == len(results) else _listing(single)
        sentences.append(f"{who} ran with one seed, so the spread is not known.")
    return " ".join(sentences)


def cheapest(results: Sequence[MethodResult], i: int) -> str:
    """A sentence on who reached target i with the least energy, traffic and time.

    Methods whose costs are tied with the lowest are named with it; methods of which a seed missed
    the target are left out. Empty if none is left.
    """
    ranked = [r for r in results if r.targets[i].always]
    if not ranked:
        return ""
    parts = []
    for how, column, kind in _COSTS:
        costs: dict[str, Spread] = {r.name: getattr(r.targets[i], column) for r in ranked}
        first = min(costs, key=lambda name: costs[name].mean)
        level = [name for name in costs if name != first and tied(costs[first], costs[name])]
        tie = f", tied with {_listing(level)}" if level else ""
        parts.append(f"{how} by {first} ({quantity(costs[first], kind)}{tie})")
    metric = results[0].metric
    return f"{_capital(metric.target(results[0].targets[i].goal))} was reached {_listing(parts)}."


def run_headline(record: RunRecord, targets: Sequence[float]) -> str:
    """A sentence on the targets that one run reached, and when."""
    name = f"{record.summary['name']} (seed {record.summary['seed']})"
    metric, values = record.metric, record.evaluations()[1]
    best = metric.best(values)
    reached = [t for t in targets if time_to(record, t) is not None]
    missed = [t for t in targets if t not in reached]
    if reached:
        taken = quantity(time_to(record, reached[-1]), "s")
        step = time_to(record, reached[-1], "step")
        if record.priced:
            energy = quantity(time_to(record, reached[-1], "joules"), "J")
            taken = f"{energy} of energy and {taken}"
        text = (
            f"{name} reached {metric.phrase(metric.short(reached[-1]))} after {taken} of virtual "
            f"time, at server step {step:.0f}; its best was {metric.text(best)}."
        )
        if missed:
            text += f" It did not reach {_listing([metric.target(t) for t in missed])}."
        return text
    if missed:
        goals = metric.phrase(_listing([metric.short(t) for t in missed], "or"))
        return f"{name} did not reach {goals}; its best was {metric.missed(best, missed[0])}."
    final = metric.phrase(metric.text(float(values[-1])))
    return f"{name} ended at {final}; its best was {metric.text(best)}."


def _ranking(column: Sequence[Entry]) -> str:
    metric = column[0][0].metric
    goal = metric.phrase(metric.short(column[0][1].goal))
    ranked = sorted((e for e in column if e[1].always), key=lambda e: _time(e).mean)
    winner, others = ranked[0], ranked[1:]
    level = [e for e in others if tied(_time(winner), _time(e))]
    behind = [e for e in others if e not in level]
    reference = column[0][0].name
    spell = partial(_spell, like=_time(winner).mean or None)
    if level:
        names = _listing([f"{_name(e)} ({spell(e)})" for e in (winner, *level)])
        low, high = _time(winner).mean, _time(level[-1]).mean
        same = high - low <= _SAME * high
        how = "at practically the same virtual time" if same else "within the spread over seeds"
        text = f"A tie: {names} reached {goal} {how}"
    else:
        who = _name(winner)
        if who == reference and len(column) > 1:
            who = f"The reference, {who},"
        first = " first" if len(column) > 1 else ""
        if any(e[1].reached and not e[1].always for e in column):
            first = " first of those that did so with every seed"
        text = f"{who} reached {goal}{first}, after {spell(winner)} of virtual time"
    named = [e for e in behind if e is behind[0] or e[0].name == reference]
    if len(behind) <= _MOST_NAMED:
        named = behind
    than = f" as {_name(winner)}" if level else ""
    for entry in named:
        text += f"; {_name(entry)} took {spell(entry)}{_longer(winner, [entry], than)}"
    rest = [e for e in behind if e not in named]
    if rest:
        ends = dict.fromkeys([spell(rest[0]), spell(rest[-1])])
        count = f"{len(rest)} other{'s' if len(rest) > 1 else ''}"
        text += f"; {count} took {' to '.join(ends)}{_longer(winner, rest, than)}"
    failed = [entry for entry in column if not entry[1].always]
    return " ".join([f"{text}.", *map(_shortfall, failed)])


def _longer(winner: Entry, others: Sequence[Entry], than: str) -> str:
    """How much longer the others took; empty if the winner's time is zero."""
    first_s = _time(winner).mean
    if first_s <= 0:
        return ""
    ratios = dict.fromkeys(times(_time(e).mean / first_s) for e in (others[0], others[-1]))
    return f", {' to '.join(ratios)} as long{than}"


def _shortfall(entry: Entry) -> str:
    """A sentence on a method that missed a target which others reached."""
    target = entry[1]
    if not target.reached:
        best = entry[0].metric.missed(target.best, target.goal)
        return f"{_name(entry)} did not reach it (best {best})."
    return (
        f"{_name(entry)} reached it in only {target.reached} of {target.seeds} seeds "
        f"(there after {_spell(entry)}), so it is not ranked."
    )


def _missed(column: Sequence[Entry], timed: bool) -> str:
    """A sentence on a target that no method reached with every seed; `timed` adds the times."""
    goal = column[0][0].metric.target(column[0][1].goal)
    some = [e for e in column if e[1].reached]
    if not some:
        return f"{'No method' if len(column) > 1 else _name(column[0])} {_none(column)} {goal}."
    parts = [
        f"{_name(e)} in {e[1].reached} of {e[1].seeds}" + (f" (after {_spell(e)})" if timed else "")
        for e in some
    ]
    return f"{_capital(goal)} was reached in some seeds only: {', '.join(parts)}."


def _none(column: Sequence[Entry]) -> str:
    return "reached" if len(column) > 1 else "did not reach"


def _best(results: Sequence[MethodResult]) -> str:
    """The best value of any run, and the method that reached it."""
    metric = results[0].metric
    scores = {r.name: metric.best(r.best.values) for r in results if r.best is not None}
    if not scores:
        return f"no run has a finite {metric.label}"
    top = metric.best(list(scores.values()))
    names = _listing([name for name, score in scores.items() if score == top])
    goals = results[0].targets
    score = metric.missed(top, goals[0].goal) if goals else metric.text(top)
    return f"the best {metric.label} was {score}, by {names}"


def _time(entry: Entry) -> Spread:
    value = entry[1].virtual_s
    assert value is not None
    return value


def _spell(entry: Entry, like: float | None = None) -> str:
    return quantity(_time(entry), "s", like)


def _name(entry: Entry) -> str:
    return entry[0].name


def _listing(items: Sequence[str], word: str = "and") -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
