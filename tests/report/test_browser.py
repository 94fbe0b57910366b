"""Pages in a browser: every control, the numbers of the scripts, and no request to anywhere."""

import contextlib
import json
import math
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from fedjax_het.report import RunWriter, live, page, serving
from fedjax_het.report.page import comparison_page
from fedjax_het.report.progress import JOBS, Watched
from fedjax_het.report.results import summarise
from fedjax_het.report.tables import target_rows

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is missing: pip install 'fedjax-het[test]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium"
)
WAIT_MS = 120_000  # of a machine that others use


@pytest.fixture(scope="module")
def browser():
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # as the browser itself asks for
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=root, timeout=WAIT_MS)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Opens an address in a tab of some width; the tab notes its errors and its requests."""
    contexts = []

    def open_page(address, width=1200, **settings):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **settings))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(WAIT_MS)
        tab.faults, tab.asked = [], []
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.on("console", lambda told: told.type == "error" and tab.faults.append(told.text))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()


def named(record):
    """The run on clients with names."""
    ids = np.array([f"hospital {i:02}" for i in range(len(record.population))])
    return replace(record, population=replace(record.population, ids=ids))


@pytest.fixture(scope="module")
def methods(make_run):
    """Three methods on devices with prices, clients with names, and seeds that end apart."""
    every = {"joules": True, "client_rows": "personal"}
    kinds = {
        "FedAvg": {},
        "FedPMT": {"first_block": (0, 1, 2), "slowness": 3.5},
        "FedAsync": {"best": 0.85, "steps": 16},
    }
    return {
        name: [named(make_run(name, seed, **every, **kind)) for seed in range(4)]
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module", autouse=True)
def one_figure():
    """Pages with one figure; to draw all of them takes longer than the browser."""
    draw = page.inline_svg

    def only_over_time(figure, prefix, description):
        return draw(figure, prefix, description) if prefix == "time" else "<svg></svg>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "inline_svg", only_over_time)
        yield


@pytest.fixture(scope="module")
def written(methods, tmp_path_factory):
    """The page of the methods, as a file."""
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(comparison_page(methods, [0.8, 0.9]))
    return path


def computed(tab, function, target, hidden=()):
    """What a function of `assets/numbers.js` finds for a target without some seeds."""
    shown = "(_, run) => !hidden.includes(run.seed)"
    ask = f"([target, hidden]) => Numbers.{function}(report.data, target, {shown})"
    return tab.evaluate(ask, [target, list(hidden)])


def rows_of(tab, target, hidden=()):
    return [tuple(row) for row in computed(tab, "targetRows", target, hidden)]


def same(ours, theirs):
    """Whether two numbers are the same up to the last bits of their sums, or both are none."""
    if ours is None or theirs is None:
        return ours is theirs
    return math.isclose(ours, theirs, rel_tol=1e-12, abs_tol=1e-12)


def test_the_page_computes_what_python_does(opened, written, methods, two_regressions, tmp_path):
    tab = opened(written.as_uri())
    for target in (0.1, 0.5, 0.7312, 0.8, 0.86, 0.9, 0.925, 0.999, 1.0):
        for hidden in ([], [1], [0, 2, 3]):
            kept = {
                name: [run for run in runs if run.summary["seed"] not in hidden]
                for name, runs in methods.items()
            }
            assert rows_of(tab, target, hidden) == _rows(summarise(kept, [target]))
            found = computed(tab, "targetResults", target, hidden)
            for ours, theirs in zip(found, summarise(kept, [target]), strict=True):
                goal = theirs.targets[0]
                assert (ours["reached"], ours["seeds"]) == (goal.reached, goal.seeds)
                assert same(ours["speedUp"], goal.speed_up)
                for column in ("virtual_s", "wall_s", "step", "bytes_up", "joules"):
                    spread = getattr(goal, column)
                    there = ours["at"][column]
                    assert (there is None) == (spread is None)
                    if spread is not None:
                        assert there["values"] == list(spread.values)
                        assert same(there["mean"], spread.mean)
                        assert same(there["std"], spread.std)
    path = tmp_path / "regression.html"
    path.write_text(comparison_page(two_regressions, [3.0]))
    tab = opened(path.as_uri())
    for target in (25.0, 3.0, 2.5, 2.0123456789, 1.96, 0.5, -1.0):
        assert rows_of(tab, target) == _rows(summarise(two_regressions, [target]))
    # Ties go to the even digit, as in Python.
    for value, places in ((24.25, 1), (24.35, 1), (2.5, 0), (0.125, 2), (-0.375, 2), (1e-7, 3)):
        assert tab.evaluate("([v, p]) => Numbers.fixed(v, p)", [value, places]) == (
            f"{value:.{places}f}"
        )
    for value, digits in ((90.0, 6), (1e-5, 6), (0.0001, 6), (1234567.0, 6), (0.00312, 4)):
        assert tab.evaluate("([v, d]) => Numbers.general(v, d)", [value, digits]) == (
            f"{value:.{digits}g}"
        )
    assert not tab.faults


def _rows(results):
    return [(label, cells) for label, cells in target_rows(results, 0)]


@pytest.mark.parametrize("width", [1200, 420])
def test_every_control(opened, written, methods, width):
    tab = opened(written.as_uri(), width)
    results = tab.locator("#results")
    # Nothing is wider than the screen; the static curves are folded, and everything else is there.
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert not tab.locator("#curves .plot").first.is_visible()
    assert tab.locator("#explore canvas").is_visible()

    # Hover: the values under the cursor, the best first.
    over = tab.locator(".chart .u-over")
    readout = tab.locator(".readout")
    assert not readout.is_visible()

    def hover(part=0.2):
        over.hover(position={"x": part * over.bounding_box()["width"], "y": 60})

    hover()
    assert readout.is_visible()
    assert "virtual time" in readout.inner_text()
    assert len(readout.locator("tr").all()) == 3
    box = readout.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    shown = {
        row.locator("th").inner_text(): row.locator("td").first.inner_text()
        for row in readout.locator("tr").all()
    }
    x = tab.evaluate("report.chart.reading().x")
    for name, runs in methods.items():
        mean = np.mean([np.interp(x, *run.evaluations()) for run in runs])
        assert shown[name] == f"{100 * mean:.2f} %"

    # The keyboard reads the curves too, and what it reads is spoken.
    tab.locator(".chart").focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    assert "FedAvg" in tab.locator("#explore .unseen").inner_text()
    tab.keyboard.press("Escape")
    assert not readout.is_visible()

    # Axes.
    axis = tab.get_by_role("combobox", name="against")
    for label, unit in (
        ("server steps", ""),
        ("sent by all devices", "MB"),
        ("energy of all devices", "J"),
        ("wall time without compiling", "s"),
        ("virtual time", "s"),
    ):
        axis.select_option(label=label)
        hover()
        heading = readout.locator("strong").inner_text()
        assert heading.startswith(label)
        assert heading.endswith(unit)
    tab.locator("#values").select_option(label="worst-decile client accuracy")
    hover()
    assert "FedAvg" in readout.inner_text()
    tab.locator("#values").select_option(label="test accuracy")

    # A target of the reader's: its rows come first, and leave when it is taken back.
    lines = len(results.locator("tbody tr").all())
    target = tab.locator("#target")
    target.fill("85")
    own = results.locator("tbody.own tr")
    expected = _rows(summarise(methods, [0.85]))
    assert [row.locator("td").all_inner_texts() for row in own.all()] == [c for _, c in expected]
    target.fill("850")
    assert target.get_attribute("aria-invalid") == "true"
    target.fill("")
    assert len(results.locator("tbody tr").all()) == lines
    target.fill("85")

    # Seeds and methods.
    tab.get_by_label("2", exact=True).uncheck()
    kept = {name: [*runs[:2], runs[3]] for name, runs in methods.items()}
    expected = _rows(summarise(kept, [0.85]))
    assert [row.locator("td").all_inner_texts() for row in own.all()] == [c for _, c in expected]
    hover()
    tab.locator("#seeds").select_option(label="one by one")  # what is under the cursor follows
    assert len(readout.locator("tr").all()) == 9
    tab.get_by_label("FedAvg", exact=True).uncheck()
    hover()
    assert len(readout.locator("tr").all()) == 6
    assert results.locator("thead th:visible").all_inner_texts()[1:] == ["FedPMT", "FedAsync"]
    tab.get_by_label("FedAvg", exact=True).check()

    # Order of the methods, by the first row and back.
    def order():
        return results.locator("thead th").all_inner_texts()[1:]

    sort = own.first.get_by_role("button")
    found = []
    for state in ("ascending", "descending", None):
        sort.press("Enter")
        assert own.first.locator("th").get_attribute("aria-sort") == state
        found.append(order())
    assert found == [
        ["FedPMT", "FedAvg", "FedAsync"],
        ["FedAsync", "FedAvg", "FedPMT"],
        ["FedAvg", "FedPMT", "FedAsync"],
    ]

    # Clients: search, order, and one of them by its name.
    clients = tab.locator("#clients")
    clients.get_by_role("searchbox").fill("hospital 1")
    assert clients.locator("table.clients tbody th").all_inner_texts() == [
        "hospital 10",
        "hospital 11",
    ]
    clients.get_by_role("searchbox").fill("")
    clients.locator("#columns").select_option(label="FedPMT")
    sizes = methods["FedPMT"][0].population.sizes
    clients.get_by_role("button", name="samples").click()
    clients.get_by_role("button", name="samples").click()
    most = clients.locator("table.clients tbody tr").first
    assert most.locator("td").nth(1).inner_text() == str(sizes.max())
    clients.get_by_role("button", name="hospital 07").click()
    detail = clients.locator(".detail").inner_text()
    for told in ("Client hospital 07", "group 1", str(sizes[7]), "after its local training"):
        assert told in detail
    row = methods["FedPMT"][0].client_evaluations[12 + 7]
    assert (row["step"], row["client"]) == (20, 7)
    assert f"{100 * row['accuracy']:.2f} %" in detail
    assert len(clients.locator(".bars li").all()) == 10

    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert not tab.faults
    assert tab.asked == [written.as_uri()]


def test_no_script_of_another_runs_and_no_request_leaves(opened, written):
    tab = opened(written.as_uri())
    tab.evaluate("addEventListener('securitypolicyviolation', (e) => (window.refused = e))")
    tab.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")
    tab.wait_for_function("() => window.refused && refused.effectiveDirective === 'connect-src'")
    tab.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); }"
    )
    assert tab.evaluate("window.ran") is None


def test_without_javascript_the_figures_are_there(opened, written):
    tab = opened(written.as_uri(), java_script_enabled=False)
    for place in ("#curves", "#results"):
        assert tab.locator(place).is_visible()
    assert tab.locator("#curves svg").first.is_visible()
    assert not tab.locator("#explore").is_visible()
    assert not tab.locator("#clients").is_visible()


@pytest.fixture
def busy_pages(monkeypatch):
    """Live pages that are drawn as often as there is something new."""
    monkeypatch.setattr(live, "_SHARE", 1e9)
    monkeypatch.setattr(serving, "_LOOK_S", 0.05)


def test_a_live_page_follows_and_keeps_the_choices(opened, make_run, tmp_path, busy_pages):
    record = named(make_run("FedAvg", 0, client_rows="own"))
    place = tmp_path / "fedavg" / "seed0"
    jobs = {"methods": [{"name": "FedAvg"}], "seeds": [0], "targets": [0.8]}
    held = {}

    def steps(first, last):
        for row in record.metrics[first:last]:
            writer.write_step(row, [c for c in record.clients if c["step"] == row["step"]])

    server = serving.Server("localhost", 0, live.LivePage(Watched(tmp_path), held.get))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.shutdown)
        tab = opened(server.url)
        banner = tab.locator("#live")
        told = playwright.expect
        told(banner).to_contain_text("No run has begun here yet.", timeout=WAIT_MS)

        writer = stack.enter_context(RunWriter(place))
        held[place] = ("process 1 of here", False)
        (tmp_path / JOBS).write_text(json.dumps(jobs))
        writer.write_config(record.config)
        facts = {k: record.summary[k] for k in ("name", "algorithm", "seed", "num_clients")}
        facts |= {k: record.summary[k] for k in ("num_blocks", "block_names", "data")}
        facts |= {"targets": [{"accuracy": 0.8}]}
        facts["data"] = {**facts["data"], "named": record.population.named}
        writer.write_facts(facts, record.population)
        steps(0, 5)
        told(banner).to_contain_text("Running: 0 of 1 runs have ended.", timeout=WAIT_MS)
        target = tab.locator("#target")
        target.fill("70", timeout=WAIT_MS)
        tab.locator("#axis").select_option(label="server steps")
        tab.locator("#clients").get_by_role("button", name="hospital 07").click()
        own = tab.locator("#results tbody.own td").first
        told(own).to_contain_text("not reached (best", timeout=WAIT_MS)
        target.focus()

        steps(5, len(record.metrics))
        tab.wait_for_function(
            "length => report.data.methods[0].runs[0].values.length === length",
            arg=len(record.metrics),
        )
        assert target.input_value() == "70"
        assert tab.evaluate("document.activeElement.id") == "target"
        assert tab.locator("#axis").input_value() == "step"
        assert "Client hospital 07" in tab.locator("#clients .detail").inner_text()
        reached = summarise({"FedAvg": [record]}, [0.7])[0].targets[0]
        assert own.inner_text() == reached.time_text(record.metric, reached.virtual_s.mean)

        # A process that is killed leaves its lock.
        held[place] = ("process 1 of here", True)
        told(banner).to_contain_text("Stopped before the end", timeout=WAIT_MS)
        told(banner).to_contain_text("process 1 of here has ended")
        # Another one goes on, and the run ends.
        held[place] = ("process 2 of here", False)
        told(banner).to_contain_text("process 2", timeout=WAIT_MS)
        del held[place]
        summary = {**record.summary, "data": facts["data"]}
        writer.write_summary(summary, record.population)
        (tmp_path / "comparison.json").write_text("{}")
        told(banner).to_contain_text("Finished: 1 of 1 runs have ended.", timeout=WAIT_MS)
        assert target.input_value() == "70"
        server.shutdown()
        thread.join()
        told(banner).to_contain_text("The watching program has ended", timeout=WAIT_MS)
        assert {address.split("?")[0] for address in tab.asked} <= {
            server.url,
            f"{server.url}state",
        }
