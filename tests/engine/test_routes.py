"""Which programs a run has: a bound on them, and routes that are rented before they are bought."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import exits_problem, make_plan

from fedjax_het.algorithms import build
from fedjax_het.contract.masks import Route
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.routes import Price, Routes
from fedjax_het.simulation.simulate import simulate

FULL = Route(0, None)
PROBLEM = exits_problem()
COST = PROBLEM.cost
WINDOWS = [Route(first, exit) for exit in range(3) for first in range(exit + 1)]
# With nothing for blocks, FLOPs are the only price.
RATE = 1e6


def plan_of(*routes, steps=1):
    clients = np.arange(len(routes)) % PROBLEM.num_clients
    return make_plan(PROBLEM, routes=routes, clients=clients, steps=steps, batch=1)


def flops(route):
    """FLOPs of a step of one sample."""
    heads = None if route.exit is not None else np.array([True, True, False])
    return float(COST.step_flops(route.first, route.exit, heads))


def renting(tasks, saved=None):
    """Routes whose program costs as much as `tasks` tasks of (1, 1) waste on the full route."""
    program_s = tasks * (flops(FULL) - flops(Route(1, 1))) / RATE
    return Routes(32, FULL, COST, Price(program_s, 0.0, RATE, 0.0), saved=saved)


def test_widening_keeps_to_the_cheapest_covering_route():
    def execute(planned, known):
        routes = Routes(3, FULL, COST, saved={"routes": [route.code for route in known]})
        return routes.execute(plan_of(*planned)), routes.known

    planned = [Route(2, 2), Route(1, 2), Route(0, 2), Route(0, 0), Route(2, 2)]
    executed, known = execute(planned, [])
    for route, chosen in zip(planned, executed, strict=True):
        assert chosen.covers(route)
    assert set(executed) <= {FULL, *planned}
    assert set(executed) == set(known)
    assert len(known) == 3
    # What was chosen before is taken again, and what it covers goes along with it.
    assert execute(planned, known) == (executed, known)
    known = []
    for route, chosen in [
        (Route(1, 2), Route(1, 2)),
        (Route(0, 2), Route(0, 2)),
        (Route(2, 2), Route(1, 2)),
        (Route(0, 0), FULL),
    ]:
        (own,), known = execute([route], known)
        assert own == chosen


def test_a_route_gets_its_program_once_that_much_work_was_wasted():
    routes = renting(tasks=3.5)
    # The first of a run is its own; the widest of a round comes first, and covers the others.
    assert routes.execute(plan_of(Route(2, 2), Route(0, 2))) == [Route(0, 2)] * 2
    for _ in range(3):
        assert routes.execute(plan_of(Route(1, 1))) == [FULL]
    assert routes.known == [Route(0, 2), FULL]
    assert routes.execute(plan_of(Route(1, 1))) == [Route(1, 1)]
    assert routes.known == [Route(0, 2), FULL, Route(1, 1)]
    # Another tenant had its own account.
    assert routes.execute(plan_of(Route(0, 0))) == [FULL]
    # So many steps pay at once.
    assert routes.execute(plan_of(Route(0, 1), steps=1000)) == [Route(0, 1)]


def test_a_run_of_one_route_never_computes_more():
    routes = renting(tasks=1e9)
    assert [routes.execute(plan_of(Route(1, 1))) for _ in range(3)] == [[Route(1, 1)]] * 3


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_work_is_wasted_up_to_the_price_and_a_resumed_run_decides_alike(data):
    routes = renting(data.draw(st.floats(0.5, 20.0), "tasks"))
    price = routes._price
    wasted = dict.fromkeys(WINDOWS, 0.0)
    rounds = data.draw(
        st.lists(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=4)), "rounds"
    )
    for planned in rounds:
        steps = data.draw(st.integers(1, 5), "steps")
        plan = plan_of(*planned, steps=steps)
        again = Routes(32, FULL, COST, price, saved=json.loads(json.dumps(routes.saved)))
        before = set(routes.known)
        executed = routes.execute(plan)
        assert again.execute(plan) == executed
        assert again.saved == routes.saved
        for route, chosen in zip(planned, executed, strict=True):
            assert chosen.covers(route)
            # Nothing is taken that costs more than what there was.
            assert all(flops(chosen) <= flops(other) for other in before if other.covers(route))
            wasted[route] += steps * (flops(chosen) - flops(route)) / RATE
        # What a route wastes stays below a program's price; after that it has its own.
        assert all(seconds <= price.program_s * (1 + 1e-9) for seconds in wasted.values())


def test_narrow_networks_are_compared_by_their_own_flops():
    full, narrow = Route(0, 2), Route(0, 2, width=1)
    price = Price(0.5 * flops(full) / RATE, 0.0, RATE, 0.0)
    for share, bought in ((0.9, False), (0.1, True)):
        waste_s = (1 - share) * flops(full) / RATE
        routes = Routes(32, full, COST, price, (1.0, share))
        routes.execute(plan_of(full))
        (chosen,) = routes.execute(plan_of(narrow))
        assert (chosen == narrow) is bought is (waste_s >= price.program_s)
        assert chosen.covers(narrow)


def test_a_small_model_gets_two_programs_however_many_windows():
    algorithm = build("fedel", PROBLEM, learning_rate=0.1, batch_size=4)
    engine = make_engine(algorithm, PROBLEM, chunk=2)
    result = simulate(algorithm, PROBLEM, rounds=6, engine=engine, chunk=2)
    planned = {(row["first_block"], row["exit_block"]) for row in result.record.clients}
    assert len(planned) > 2
    assert engine.programs == 2
