"""Paces as transformations: equal to the methods that have them, by hand, and refused by name."""

import functools
import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import DEFAULT, SETTINGS
from problems import (
    assert_close,
    digits_problem,
    make_chunk,
    make_plan,
    nudge,
    scalar_problem,
    scalars,
    values_of,
)

import fedjax_het as fh
from fedjax_het.algorithms import ALGORITHMS, build
from fedjax_het.common.errors import InputError
from fedjax_het.contract import clock
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator
from fedjax_het.contract.clock import Status, dispatch
from fedjax_het.contract.memory import Buffers
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.staleness import discount, scaled
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.transforms.pace import PACES

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
DEADLINE_S = 0.1  # stops the slowest third of the devices
# A pace of each name that fits the small problems.
SAMPLES = {
    "arrivals": fh.pace.arrivals(2),
    "barrier": fh.pace.barrier(),
    "buffer": fh.pace.buffer(2),
    "deadline": fh.pace.deadline(DEADLINE_S),
    "first": fh.pace.first(2, of=3),
    "partial": fh.pace.deadline(DEADLINE_S, late="partial"),
    "window": fh.pace.window(0.12),
}


@functools.cache
def evaluator():
    return Evaluator(digits_problem())


def run(name, *transformations, rounds=3, **options):
    method = build(name, digits_problem(), **TRAINING, **options)
    method = fh.compose(method, *transformations)
    result = fh.simulate(method, digits_problem(), rounds=rounds, evaluator=evaluator())
    assert result.faults == []
    return result


def assert_identical(one, other):
    chex.assert_trees_all_equal(one.variables, other.variables)
    assert one.record.clients == other.record.clients
    for a, b in zip(one.record.metrics, other.record.metrics, strict=True):
        timed = ("wall_s", "compile_s", "compiled_programs")
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


# ---- equal to methods that have the pace ---------------------------------------------------------


def test_paces_that_wait_for_all_are_the_barrier_bit_for_bit():
    method = build("fedavg", digits_problem(), clients_per_round=4, **TRAINING)
    programs = {"engine": make_engine(method, digits_problem()), "evaluator": evaluator()}
    plain = fh.simulate(method, digits_problem(), rounds=3, **programs)
    for pace in (
        fh.pace.barrier(),
        fh.pace.deadline(math.inf),
        fh.pace.deadline(math.inf, late="partial"),
        fh.pace.first(4, of=4),
        fh.pace.first(over_select=1.0),
    ):
        paced = fh.compose(method, pace)
        assert_identical(fh.simulate(paced, digits_problem(), rounds=3, **programs), plain)


def test_a_deadline_makes_fedavg_drop_stragglers_and_fedprox():
    dropped = run("fedavg", fh.pace.deadline(DEADLINE_S))
    assert_identical(dropped, run("drop_stragglers", deadline_s=DEADLINE_S))
    partial = run("fedavg", fh.pace.deadline(DEADLINE_S, late="partial"))
    assert_identical(partial, run("fedprox", mu=0.0, deadline_s=DEADLINE_S))


@pytest.mark.parametrize("staleness", ["constant", "polynomial"])
def test_a_buffer_makes_fedavg_of_equals_fedbuff(staleness):
    options = {"clients_per_round": 5, "rounds": 6}
    buffered = fh.pace.buffer(3, staleness=staleness, max_staleness=2)
    ours = run("fedavg", buffered, weighting="uniform", **options)
    cap = {"staleness": staleness, "buffer_size": 3, "max_staleness": 2}
    fedbuff = run("fedbuff", **cap, **options)
    assert_close(ours.variables, fedbuff.variables)
    columns = ("step", "client", "version", "status", "arrived_s")
    of = lambda result: [[row[c] for c in columns] for row in result.record.clients]
    assert of(ours) == of(fedbuff)
    assert max(row["staleness"] for row in ours.record.clients) == 2


def test_other_paces_keep_rounds_in_batches():
    method = build("fedpmt", digits_problem(), **TRAINING)
    assert all(fh.compose(method, SAMPLES[n]).plans_ahead for n in ("barrier", "deadline", "first"))
    assert not fh.compose(method, SAMPLES["window"]).plans_ahead
    assert fh.compose(method, SAMPLES["buffer"]).pace.refills


# ---- by hand, on tasks of known length -----------------------------------------------------------

PROBLEM = scalar_problem((1, 1, 1), blocks=1)


def timed(seconds, *transformations, rounds, **training):
    """A run in which client k works for `seconds[k]` and moves the only parameter by k + 1."""
    seconds = np.asarray(seconds, np.float64)

    def plan(state, variables, situation):
        tasks = make_plan(PROBLEM, clients=situation.clients)
        timing = tasks.timing._replace(compute_s=seconds[situation.clients])
        return tasks._replace(timing=timing), state

    moves = lambda task: (task.client + 1).astype(jnp.float32)
    method = nudge(PROBLEM, value=moves, **training)
    method = method._replace(plan=plan, paces=Paces(overlap=True))
    result = fh.simulate(fh.compose(method, *transformations), PROBLEM, rounds=rounds)
    assert result.faults == []
    ends_s = {row["step"]: row["virtual_s"] for row in result.record.metrics}
    columns = ("step", "client", "version", "status")
    tasks = [(*(row[c] for c in columns), ends_s[row["step"]]) for row in result.record.clients]
    return values_of(result.variables)[0], tasks, result


def test_over_selection_merges_the_first_of_those_selected():
    moved, tasks, result = timed([3.0, 1.0, 2.0], fh.pace.first(2, of=3), rounds=2)
    # Clients 1 and 2 arrive first: (2 + 3) / 2 per round of two seconds.
    assert moved == pytest.approx(5.0)
    assert tasks == [
        (1, 0, 0, "dropped", 2.0),
        (1, 1, 0, "merged", 2.0),
        (1, 2, 0, "merged", 2.0),
        (2, 0, 1, "dropped", 4.0),
        (2, 1, 1, "merged", 4.0),
        (2, 2, 1, "merged", 4.0),
    ]
    assert result.record.metrics[1]["dropped"] == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 7))
def test_the_first_arrivals_end_a_round(compute_s, count):
    problem = scalar_problem(tuple([1] * len(compute_s)), blocks=1)
    plan = make_plan(problem)
    plan = plan._replace(timing=plan.timing._replace(compute_s=np.asarray(compute_s, np.float64)))
    closing = clock.first(count).close(dispatch(plan, 10.0, 0))
    kept = sorted(range(len(compute_s)), key=lambda i: (compute_s[i], i))[:count]
    assert closing.at_s == 10.0 + max(compute_s[i] for i in kept)
    assert [s is Status.MERGED for s in closing.status] == [
        i in kept for i in range(len(compute_s))
    ]
    assert set(closing.status) <= {Status.MERGED, Status.DROPPED}


def test_over_selection_rounds_up():
    method = build("fedavg", digits_problem(), clients_per_round=5, **TRAINING)
    sizes = [
        fh.compose(method, pace).cohort_size
        for pace in (
            fh.pace.first(5, of=7),
            fh.pace.first(over_select=1.3),
            fh.pace.first(3, over_select=1.3),
            fh.pace.first(10, over_select=1.1),
        )
    ]
    assert sizes == [7, 7, 4, 11]


CAPPED = [
    # Client 0 comes back every second, 1 every 1.5 s, 2 never within two steps.
    (1, 0, 0, "merged", 1.0),
    (2, 1, 0, "merged", 1.5),
    (3, 0, 1, "merged", 2.0),
    (3, 2, 0, "dropped", 2.0),  # would be merged at step 3 at the earliest, three steps late
    (4, 0, 3, "merged", 3.0),
    (5, 1, 2, "merged", 3.0),
    (6, 0, 4, "merged", 4.0),
    (6, 2, 3, "dropped", 4.0),
]


def test_a_cap_on_staleness_gives_late_tasks_up():
    moved, tasks, _ = timed([1.0, 1.5, 5.0], fh.pace.arrivals(1, max_staleness=2), rounds=6)
    assert tasks == CAPPED
    assert moved == pytest.approx(1 + 2 + 1 + 1 + 2 + 1)


def test_a_discount_shortens_the_step_of_a_client_that_comes_alone():
    pace = fh.pace.arrivals(1, staleness="polynomial", a=1.0, max_staleness=2)
    moved, tasks, _ = timed([1.0, 1.5, 5.0], pace, rounds=6)
    assert tasks == CAPPED
    assert moved == pytest.approx(1 + 2 / 2 + 1 / 2 + 1 + 2 / 3 + 1 / 2)


def test_without_staleness_arrivals_are_over_selection():
    capped, tasks, _ = timed([3.0, 1.0, 2.0], fh.pace.arrivals(2, max_staleness=0), rounds=3)
    first, others, _ = timed([3.0, 1.0, 2.0], fh.pace.first(2, of=3), rounds=3)
    assert sorted(tasks) == sorted(others)
    assert capped == pytest.approx(first)


def test_observations_see_only_tasks_that_count():
    told = []

    def observe(state, variables, report):
        told.append((report.plan.clients.tolist(), report.staleness.tolist(), report.loss.shape))
        return state, variables, {}

    watching = lambda algorithm: algorithm._replace(observe=observe)
    pace = fh.pace.arrivals(1, max_staleness=2)
    timed([1.0, 1.5, 5.0], pace, watching, rounds=6)
    merged = [row for row in CAPPED if row[3] == "merged"]
    assert told == [([client], [step - 1 - v], (1,)) for step, client, v, _, _ in merged]


def test_discounted_updates_by_hand():
    merge = masked_mean()
    start = scalars([10.0])
    delta = {"blocks": ({"w": jnp.asarray([6.0, 6.0], jnp.float32)},), "exits": ()}
    chunk = make_chunk(start, [1.0, 3.0], delta)._replace(staleness=jnp.asarray([0, 2]))
    acc = merge.add(merge.init((), start, None), scaled(chunk, discount("polynomial", 1.0)))
    # (1 * 6 + 3 * 6 / 3) / (1 + 3)
    assert values_of(merge.finalize(acc, start, None).variables)[0] == pytest.approx(13.0)


def test_a_resumed_run_with_a_cap_is_the_same(tmp_path):
    pace = fh.pace.buffer(2, staleness="hinge", a=1.0, b=0.0, max_staleness=1)
    method = build("fedavg", digits_problem(), **TRAINING, clients_per_round=5)
    method = fh.compose(method, pace, fh.select.oort())
    programs = {"engine": make_engine(method, digits_problem()), "evaluator": evaluator()}
    go = functools.partial(fh.simulate, method, digits_problem(), **programs)
    whole = go(rounds=6)
    assert "dropped" in {row["status"] for row in whole.record.clients}
    go(rounds=3, workdir=tmp_path, checkpoint_every=1)
    assert_identical(go(rounds=6, workdir=tmp_path, checkpoint_every=1), whole)


# ---- every method --------------------------------------------------------------------------------

WHOLE = {"barrier", "deadline", "first"}
EVERY = {*WHOLE, "partial", "window", "arrivals", "buffer"}
# What a registered method allows; the other paces are refused with a part of the reason.
ALLOWED = {
    "fedavg": EVERY,
    "fedprox": EVERY,
    "fedadam": EVERY,
    "fedyogi": EVERY,
    "fedopt": EVERY,
    "drop_stragglers": EVERY,
    "fedpmt": EVERY,
    "feddrop": EVERY,
    "fiarse": EVERY,
    "scalefl": EVERY,
    "fedrolex": EVERY,
    "fjord": EVERY,
    "heterofl": EVERY,
    "adel_wait": EVERY,
    "fednova": EVERY,
    "depthfl": {*WHOLE, "partial"},
    "feddyn": {*WHOLE, "partial"},
    "scaffold": {*WHOLE, "partial"},
    "pyramidfl": {"barrier"},
    "splitfed": WHOLE,
    "sub_fedavg": WHOLE,
    "timelyfl": {*WHOLE, "partial"},
    "fedel": WHOLE,
    "dtfl": {"barrier"},
    "fedgkt": {"barrier"},
}
REASONS = {
    "depthfl": "of the last step",
    "feddyn": "of the last step",
    "scaffold": "of the last step",
    "pyramidfl": "the slowest of its cohort",
    "sub_fedavg": "a measurement | of the last step",
    "timelyfl": "the interval of their cohort",
    "splitfed": "grows with the steps | the end of a round",
    "fedel": "begins with a measurement | last whole round",
    "dtfl": "scheduler must observe | clients of one round",
    "fedgkt": "the whole cohort | a whole round",
    "adel": "its deadline decides",
    "adel_drop": "its deadline decides",
    "salf": "its deadline decides",
    "fedat": "rounds of their own pace",
    "fedasync": "one arrival at a time",
    "fedbuff": "arrivals of its own pace",
    "fedfix": "windows of its own pace",
    "prfl": "windows, buffers and links",
    "prfl_fedasyn": "windows, buffers and links",
    "prfl_fedfix": "windows, buffers and links",
    "nested_mask_sync": "windows, buffers and links",
}


@functools.cache
def registered(name):
    make_problem, options = SETTINGS.get(name, DEFAULT)
    problem = make_problem()
    return build(name, problem, **options), problem


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_paces_of_every_method_are_allowed_or_refused_by_name(name):
    method, _ = registered(name)
    reasons = REASONS.get(name, "").split(" | ")
    for pace, transformation in SAMPLES.items():
        if pace in ALLOWED.get(name, ()):
            paced = fh.compose(method, transformation)
            assert paced.options["pace"]["name"] in PACES
            continue
        with pytest.raises(InputError, match=f"of {method.name}: cannot be composed") as caught:
            fh.compose(method, transformation)
        assert any(reason in str(caught.value) for reason in reasons)


@pytest.mark.parametrize(
    "name",
    [
        "fedpmt",
        *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(ALLOWED) if n != "fedpmt"),
    ],
)
def test_allowed_paces_run(name):
    method, problem = registered(name)
    programs = {"engine": make_engine(method, problem), "evaluator": Evaluator(problem)}
    waited = fh.simulate(fh.compose(method, fh.pace.barrier()), problem, rounds=2, **programs)
    assert waited.faults == []
    rows = waited.record.clients
    middle_s = float(np.median([row["arrived_s"] - row["dispatched_s"] for row in rows]))
    fitting = {
        "deadline": fh.pace.deadline(middle_s),
        "partial": fh.pace.deadline(middle_s, late="partial"),
        "window": fh.pace.window(middle_s),
    }
    for pace in sorted(ALLOWED[name] - {"barrier"}):
        paced = fh.compose(method, {**SAMPLES, **fitting}[pace])
        result = fh.simulate(paced, problem, rounds=2, **programs)
        assert result.faults == []
        assert result.record.metrics[-1]["step"] == 2
        assert {row["status"] for row in result.record.clients} & {"merged", "partial"}


def test_a_method_that_declares_nothing_may_not_overlap():
    method = nudge(PROBLEM)
    for name in WHOLE:
        fh.compose(method, SAMPLES[name])
    with pytest.raises(InputError, match="does not declare that its tasks may overlap"):
        fh.compose(method, SAMPLES["arrivals"])


def test_a_merge_with_buffers_drops_and_stops_tasks_as_well():
    """Its tasks are in the table of tasks, though none of them waits."""
    problem = digits_problem()
    plain = build("fedavg", problem, **TRAINING, epochs=4)
    merge = plain.merge

    def kept(state, variables, mask_shapes):
        return merge.init((), variables, mask_shapes), state["kept"]

    buffered = plain._replace(
        init=lambda variables, key: {"kept": jnp.zeros(3)},
        merge=Aggregator(
            kept,
            lambda acc, chunk: (merge.add(acc[0], chunk), acc[1]),
            lambda acc, variables, shared: merge.finalize(acc[0], variables, shared),
            Buffers(lambda acc: acc[1], lambda state, kept: {"kept": kept}),
        ),
    )
    assert buffered.overlaps
    rows = fh.simulate(plain, problem, rounds=1, evaluator=evaluator()).record.clients
    middle_s = float(np.median([row["arrived_s"] for row in rows]))
    programs = [{"engine": make_engine(method, problem)} for method in (buffered, plain)]
    for pace in (fh.pace.first(3, of=8), fh.pace.deadline(middle_s, late="partial")):
        ours, other = (
            fh.simulate(
                fh.compose(method, pace), problem, rounds=2, evaluator=evaluator(), **program
            )
            for method, program in zip((buffered, plain), programs, strict=True)
        )
        assert ours.faults == []
        assert_close(ours.variables, other.variables)
        by_client = lambda result: sorted(
            (row["step"], row["client"], row["status"], row["steps"], row["arrived_s"])
            for row in result.record.clients
        )
        assert by_client(ours) == by_client(other)
    assert "partial" in {row["status"] for row in ours.record.clients}
