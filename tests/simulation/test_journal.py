"""The rows of a run: how fast the device of every task was."""

from dataclasses import replace

import numpy as np
import pytest
from problems import digits_problem, nudge

from fedjax_het.contract.clock import arrivals, barrier
from fedjax_het.fleet import build
from fedjax_het.fleet.speed import random_walk
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate


@pytest.mark.parametrize("pace", [barrier(), arrivals(2)], ids=["barrier", "overlapping"])
@pytest.mark.parametrize("change", ["redrawn", "drifting"])
def test_rows_say_how_fast_the_device_was_at_dispatch(pace, change):
    """Without jitter it is the work over the time, whatever the method, as devices change."""
    base = digits_problem()
    n = base.num_clients
    if change == "redrawn":
        devices = build("dtfl", n, base_flops_per_s=1e6, redraw_every=1, redraw_share=1.0)
    else:
        drift = random_walk(n, 0, step=0.5, every_s=0.05, until_s=5.0)
        devices = replace(base.fleet, speed_trace=drift)
    problem = Problem(base.model, base.data, devices)
    result = simulate(nudge(problem)._replace(pace=pace), problem, rounds=6, execution="masked")
    rows = result.record.clients
    speed, flops, compute_s = (
        np.asarray([row[name] for row in rows])
        for name in ("device_flops_per_s", "flops", "compute_s")
    )
    np.testing.assert_allclose(speed, flops / compute_s, rtol=1e-12)
    clients = {row["client"] for row in rows}
    assert len({(row["client"], row["device_flops_per_s"]) for row in rows}) > len(clients)
    if pace.may_wait:
        assert any(row["staleness"] for row in rows)
