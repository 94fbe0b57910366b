"""Tiers over time."""

import numpy as np

from fedjax_het.report.cut_plots import cuts_of, cuts_over_time
from fedjax_het.report.page import run_page


def split(run, *, speeds=True):
    """The run as if its clients had been cut after block client mod 3, later one deeper."""
    for row in run.clients:
        row["cut_block"] = min((row["client"] % 3) + (row["step"] > 2), 2)
        if speeds:
            row["device_flops_per_s"] = 1e9 * (1 + row["client"])
    return run


def test_runs_without_cuts_have_no_such_plot(make_run):
    run = make_run("FedAvg", 0, steps=3)
    assert cuts_of(run) is None
    assert cuts_over_time(run) is None
    assert "where the network was cut" not in run_page(run)


def test_cuts_and_speeds_are_found_where_they_belong(make_run):
    run = split(make_run("DTFL", 0, steps=4))
    block, speed = cuts_of(run)
    clients = np.arange(len(block))
    np.testing.assert_array_equal(block[:, 0], clients % 3)
    np.testing.assert_array_equal(block[:, 3], np.minimum(clients % 3 + 1, 2))
    np.testing.assert_array_equal(speed[:, 2], 1e9 * (1 + clients))
    figure = cuts_over_time(run)
    top = figure.axes[0]
    # The fastest device is on top.
    assert top.get_yticklabels()[0].get_text() == str(clients[-1])
    assert figure.axes[1].get_xlabel() == "server step"
    assert "where the network was cut" in run_page(run)


def test_speeds_are_left_out_where_nobody_recorded_them(make_run):
    run = split(make_run("DTFL", 0, steps=2), speeds=False)
    assert np.isnan(cuts_of(run)[1]).all()
    assert len(cuts_over_time(run).axes) == 2  # one map and its scale
