from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedjax_het.common.errors import InputError
from fedjax_het.report import device_plots, plots, time_to
from fedjax_het.report.style import PALETTE, inline_svg, method_style, plain, png
from fedjax_het.report.tasks import (
    evenly,
    group_devices,
    mean_by_group,
    skipped_share,
    tasks_of,
    trained_share,
)

ACCURACY = [
    (plots.metric_vs_time, "virtual time (min)"),
    (plots.metric_vs_round, "server steps"),
    (plots.metric_vs_bytes_up, "sent by all devices (MB)"),
    (plots.metric_vs_wall_time, "wall time without compiling (s)"),
]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def svg_of(figure: Figure) -> str:
    return inline_svg(figure, "p", "a plot")


@pytest.mark.parametrize(("draw", "label"), ACCURACY)
def test_accuracy_plots_are_labelled_with_units(two_methods, draw, label):
    figure = draw(two_methods, [0.8, 0.9])
    (axes,) = figure.axes
    assert axes.get_xlabel() == label
    assert axes.get_ylabel() == "test accuracy (%)"
    assert texts(figure) == ["FedAvg", "FedPMT"]
    assert [t.get_text() for t in axes.texts] == ["80 %", "90 %"]


def test_the_mark_on_a_target_is_the_mean_time_to_it(two_methods):
    figure = plots.metric_vs_time(two_methods, [0.9])
    marks = [line for line in figure.axes[0].lines if len(np.ravel(line.get_xdata())) == 1]
    means = [np.mean([time_to(run, 0.9) for run in runs]) / 60 for runs in two_methods.values()]
    assert [float(np.ravel(m.get_xdata())[0]) for m in marks] == pytest.approx(means)
    assert not any(
        len(np.ravel(line.get_xdata())) == 1
        for line in plots.metric_vs_time(two_methods, [0.999]).axes[0].lines
    )


def test_an_error_is_drawn_with_its_own_name_and_numbers(two_regressions):
    figure = plots.metric_vs_time(two_regressions, [3.0, 1.0])
    (axes,) = figure.axes
    assert axes.get_ylabel() == "test MAE, log scale"
    assert [t.get_text() for t in axes.texts] == ["3", "1"]
    marks = [line for line in axes.lines if len(np.ravel(line.get_xdata())) == 1]
    means = [np.mean([time_to(run, 3.0) for run in runs]) / 60 for runs in two_regressions.values()]
    assert [float(np.ravel(m.get_xdata())[0]) for m in marks] == pytest.approx(means)
    assert {float(np.ravel(m.get_ydata())[0]) for m in marks} == {3.0}
    worst = plots.worst_clients_vs_time(two_regressions)
    assert worst is not None
    assert worst.axes[0].get_ylabel() == "worst-decile client MAE, log scale"
    svg_of(figure)


def test_a_small_range_and_a_rising_metric_have_a_linear_axis(make_run):
    error = {"name": "rmse", "higher_is_better": False, "share": False}
    run = make_run(metric=error, best=2.0, every=10, targets=())
    late = [row for row in run.metrics if row["step"] != 0]
    run = replace(run, metrics=[{**run.metrics[0], "rmse": 4.0}, *late])
    assert plots.metric_vs_time({"A": [run]}, []).axes[0].get_ylabel() == "test RMSE"
    score = {"name": "r2", "higher_is_better": True, "share": False}
    run = make_run(metric=score, best=0.9, steps=5, targets=())
    assert plots.metric_vs_time({"A": [run]}, []).axes[0].get_ylabel() == "test R²"


def test_eight_methods_look_different_and_names_are_text(make_run):
    names = ["$x$", "_hidden", "FedAvg", "a b", "é", "f", "g", "h"]
    runs = {name: [make_run(name, i, steps=3)] for i, name in enumerate(names)}
    figure = plots.metric_vs_time(runs, [])
    assert texts(figure) == [plain(name) for name in names]
    assert len({tuple(method_style(i).values()) for i in range(20)}) == 20
    assert len({line.get_color() for line in figure.axes[0].lines}) == 8
    svg_of(figure)


def test_long_runs_are_thinned(make_run):
    runs = {"FedAvg": [make_run(seed=s, steps=1000, devices=3) for s in range(2)]}
    figure = plots.metric_vs_time(runs, [])
    assert max(len(np.ravel(line.get_xdata())) for line in figure.axes[0].lines) <= 400
    assert len(svg_of(figure)) < 200_000


def test_worst_clients_need_a_record_of_them(two_methods, make_run):
    figure = plots.worst_clients_vs_time(two_methods)
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "worst-decile client accuracy (%)"
    record = make_run(steps=2)
    metrics = [{k: v for k, v in m.items() if "worst" not in k} for m in record.metrics]
    bare = replace(record, metrics=metrics)
    assert plots.worst_clients_vs_time({"bare": [bare]}) is None


def test_label_heat_map_shows_at_most_sixty_devices(make_run):
    figure = plots.labels_by_client(make_run(devices=150, steps=1))
    assert figure.axes[0].get_xlabel() == "device (60 of 150, evenly chosen)"
    assert plots.labels_by_client(make_run(steps=1)).axes[0].get_xlabel() == "device"
    record = make_run(steps=1)
    summary = {**record.summary, "data": {"name": "unlabelled", "num_classes": None}}
    facts = replace(record.population, label_counts=None)
    bare = replace(record, summary=summary, population=facts)
    with pytest.raises(InputError, match=r"label_counts: is not recorded"):
        plots.labels_by_client(bare)


def test_the_time_line_shows_forty_devices_and_every_merge(make_run):
    record = make_run(devices=90, steps=5)
    until_s = device_plots.window_s([record])
    assert until_s == record.metrics[3]["virtual_s"]
    figure = device_plots.timeline(record, until_s)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "device (40 of 90, evenly chosen)"
    assert len(axes.get_yticks()) == 40
    merges = [m["virtual_s"] for m in record.metrics[1:4]]
    lines = [line for line in axes.lines if line.get_color() == "black"]
    drawn = [np.ravel(line.get_xdata())[0] for line in lines if len(np.ravel(line.get_xdata()))]
    assert drawn == pytest.approx(merges)
    assert texts(figure) == ["download", "compute", "upload", "waiting", "merge"]


def test_the_time_line_marks_what_was_left_out(make_run):
    record = make_run(deadline_s=8.0, steps=3)
    figure = device_plots.timeline(record, device_plots.window_s([record]))
    assert texts(figure)[-1] == "left out"
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert crosses[0].get_color() == PALETTE[1]


def test_time_lines_side_by_side_end_together(make_run, two_methods):
    slow, fast = two_methods["FedAvg"][0], two_methods["FedPMT"][0]
    assert device_plots.window_s([slow, fast]) == slow.metrics[3]["virtual_s"]
    hare = make_run(steps=40, deadline_s=1.5)
    assert device_plots.window_s([slow, hare]) == hare.metrics[12]["virtual_s"]


def test_device_plots_of_two_methods(two_methods):
    figure = device_plots.trained_blocks(two_methods)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["FedAvg", "FedPMT"]
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert ticks[0] == "0 conv_1"
    figure = device_plots.waiting_by_group(two_methods)
    assert texts(figure) == ["FedAvg, busy", "FedPMT, busy", "waiting"]


def test_busy_and_waiting_make_up_the_round(make_run):
    record = make_run(deadline_s=9.0)
    tasks = tasks_of(record)
    rounds = np.diff(record.column("virtual_s"))
    np.testing.assert_allclose(tasks.busy_s + tasks.waiting_s, rounds[tasks.step - 1])
    assert (tasks.waiting_s >= 0).all()
    assert (tasks.busy_s > 0).all()
    assert not tasks.used.all()


def test_a_task_without_arrival_is_cut_at_the_merge(make_run):
    record = make_run(deadline_s=9.0, steps=2)
    lost = [{**c, "arrived_s": float("inf")} if c["status"] == "dropped" else c
            for c in record.clients]  # fmt: skip
    other = replace(record, clients=lost)
    np.testing.assert_allclose(tasks_of(other).end_s, tasks_of(record).end_s)


def test_a_device_whose_task_failed_does_not_wait(make_run):
    waiting_s = tasks_of(make_run()).waiting_s
    longest = int(np.argmax(waiting_s))
    record = make_run()
    record.clients[longest]["status"] = "failed"
    assert waiting_s[longest] > 0
    assert tasks_of(record).waiting_s[longest] == 0
    assert tasks_of(record).waiting_s.sum() == pytest.approx(waiting_s.sum() - waiting_s[longest])


def test_groups_are_ordered_by_speed(make_run):
    record = make_run()
    facts = replace(record.population, device_groups=2 - record.population.device_groups)
    record = replace(record, population=facts)
    groups = group_devices([record], [tasks_of(record)])
    assert groups.names == ["group 2", "group 1", "group 0"]
    np.testing.assert_array_equal(groups.of_client[0], np.arange(12) // 4)
    np.testing.assert_array_equal(groups.sizes, [4, 4, 4])


def test_many_groups_become_quarters_of_speed(make_run):
    record = make_run(devices=40, groups=40, steps=2)
    lazy = [c for c in record.clients if c["client"] != 7]
    up = sum(c["bytes_up"] for c in record.clients)
    record = replace(record, clients=lazy, summary={**record.summary, "bytes_up": up})
    groups = group_devices([record], [tasks_of(record)])
    assert groups.names == [f"speed Q{i}" for i in range(1, 5)]
    assert groups.of_client[0][7] == -1
    assert groups.sizes.sum() == 39
    assert (np.diff(groups.of_client[0][np.arange(40) != 7]) >= 0).all()
    for draw in (device_plots.trained_blocks, device_plots.waiting_by_group):
        svg_of(draw({"FedAvg": [record]}))
    svg_of(device_plots.timeline(record, device_plots.window_s([record])))


def test_trained_share_counts_what_reached_the_model(make_run):
    record = make_run(first_block=(0, 1, 2))
    tasks = tasks_of(record)
    of_client = record.population.device_groups
    share = trained_share(record, tasks, of_client, 4)
    expected = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(share[:, :3], expected)
    assert np.isnan(share[:, 3]).all()
    late = make_run(deadline_s=0.001)
    assert trained_share(late, tasks_of(late), of_client, 3).max() == 0
    assert np.isnan(mean_by_group(tasks.busy_s, of_client[tasks.client], 4)[3])


def test_skipped_share(make_run):
    full, masked = make_run(), make_run(first_block=(0, 1, 2))
    assert skipped_share(tasks_of(full)) == pytest.approx(0, abs=1e-12)
    done = sum(c["flops"] for c in masked.clients) / sum(c["flops"] for c in full.clients)
    assert skipped_share(tasks_of(masked)) == pytest.approx(1 - done)


def test_evenly():
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(100, 3).tolist() == [0, 50, 99] or evenly(100, 3).tolist() == [0, 49, 99]
    assert evenly(1, 3).tolist() == [0]
    assert evenly(0, 3).tolist() == []


def test_figures_are_equal_byte_for_byte(two_methods):
    one, two = (plots.metric_vs_time(two_methods, [0.9]) for _ in range(2))
    assert svg_of(one) == svg_of(two)
    assert png(one) == png(two)
    assert png(one).startswith(b"\x89PNG")
