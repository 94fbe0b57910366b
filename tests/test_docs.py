"""The documentation works as it is written: Python blocks, commands, and configuration files."""

import importlib
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from problems import assert_close, differ, digits_problem

import fedjax_het as fh
from fedjax_het import algorithms, cli, experiment
from fedjax_het.algorithms.fedrolex import fedrolex
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_lines
from fedjax_het.config import methods, named, section
from fedjax_het.data import load_federated
from fedjax_het.data.sources import READERS
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.resources import Resources
from fedjax_het.fleet import build as build_fleet
from fedjax_het.fleet.columns import UNITS
from fedjax_het.models import saving
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms.catalogue import TRANSFORMATIONS

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md"))
CONFIGS = sorted(ROOT.glob("configs/*.py"))


def blocks(page, language):
    """The page's code blocks of a language, and the text before each."""
    parts = re.split(rf"^```{language}\n(.*?)^```\n", page.read_text(), flags=re.DOTALL | re.M)
    return list(zip(parts[1::2], parts[0::2]))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current directory on the import path; what is imported from it is forgotten."""
    known, registered = set(sys.modules), set(algorithms.ALGORITHMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    for name in set(algorithms.ALGORITHMS) - registered:
        del algorithms.ALGORITHMS[name]


def test_the_new_method_of_the_documentation_runs(elsewhere, monkeypatch):
    for code, before in blocks(ROOT / "docs" / "new_method.md", "python"):
        (elsewhere / re.findall(r"`(\w+\.py)`", before)[-1]).write_text(code)
    assert {path.name for path in elsewhere.iterdir()} == {
        "random_depth.py",
        "digits_random_depth.py",
        "rolling.py",
    }
    config = experiment.load_config("digits_random_depth.py")
    config.run.update({"rounds": 2, "execution": "masked"})  # one program a method
    monkeypatch.setattr(experiment, "write_report", lambda record, path: None)
    compared = {}
    monkeypatch.setattr(
        experiment, "compare_records", lambda records, targets, root: compared.update(records)
    )
    experiment.compare([config], elsewhere / "runs")
    assert set(compared) == {"Random depth", "FedPMT"}
    (record,) = compared["Random depth"]
    first = [row["first_block"] for row in record.clients]
    assert len(first) == 2 * 12
    assert set(first) == {0, 1, 2}
    flops = {row["first_block"]: row["flops"] / row["samples"] for row in record.clients}
    assert flops[0] > flops[1] > flops[2]


def test_the_method_by_width_of_the_documentation_is_fedrolex(elsewhere):
    (code,) = [c for c, _ in blocks(ROOT / "docs" / "new_method.md", "python") if "networks" in c]
    (elsewhere / "rolling.py").write_text(code)
    importlib.import_module("rolling")
    problem = digits_problem()
    options = {"rates": (1.0, 0.5, 0.25), "learning_rate": 0.1, "batch_size": 8}
    ours, reference = (
        simulate(method, problem, rounds=2).variables
        for method in (
            algorithms.build("rolling", problem, **options),
            fedrolex(problem, weighting="samples", **options),
        )
    )
    assert_close(ours, reference, rtol=0, atol=0)
    assert differ(ours.params, problem.model.init(jax.random.key(0)).params)


def test_the_python_blocks_of_the_readme_run(elsewhere, monkeypatch, capsys):
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md")
    made = {}

    def reused(algorithm, resources):
        # Compiling one program a method gives the same numbers, sooner.
        if id(algorithm) not in made:
            masked = Resources(resources.problem, execution="masked")
            made[id(algorithm)] = Engine(algorithm, masked)
        return made[id(algorithm)]

    for module in ("simulate", "simulation"):
        monkeypatch.setattr(sys.modules[f"fedjax_het.simulation.{module}"], "Engine", reused)
    names: dict = {"__name__": "readme"}
    python = blocks(readme, "python")
    assert python
    for code, _ in python:
        exec(compile(code, str(readme), "exec"), names)
    printed = capsys.readouterr().out
    for method in names["methods"]:
        assert method in printed
    assert (elsewhere / "runs" / "mine" / "report.html").exists()


def test_the_composed_method_of_the_documentation_runs(capsys):
    page = ROOT / "docs" / "composing.md"
    names: dict = {"__name__": "composing"}
    ((code, _),) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), names)
    assert "bytes_up" in capsys.readouterr().out
    rows = names["result"].record.metrics[1:]
    assert all({"epsilon_updates", "delta"} <= set(row["info"]) for row in rows)
    assert sum(row["failed"] for row in rows) > 0
    # A tenth of the values, with four bytes each and the bits of its place.
    every = names["problem"].cost.upload_bytes()
    merged = [row for row in names["result"].record.clients if row["status"] == "merged"]
    assert all(0 < row["bytes_up"] < 0.2 * every for row in merged)
    named_ones = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", page.read_text()))
    kinds = {name.partition(".")[2] for name in TRANSFORMATIONS}
    assert kinds <= {name.rpartition(".")[2] for name in named_ones}


def test_the_sink_of_the_documentation_gets_rows(elsewhere, capsys, monkeypatch):
    """The last block; the one before asks for an extra."""
    code, _ = blocks(ROOT / "docs" / "sinks.md", "python")[-1]
    problem = digits_problem()
    algorithm = algorithms.build("fedavg", problem, learning_rate=0.1, batch_size=4)
    monkeypatch.setitem(fh.SINKS, "printed", None)  # what the page adds is removed again
    exec(code, {"fh": fh, "problem": problem, "algorithm": algorithm})
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = read_lines(elsewhere / "runs" / "printed" / "metrics.jsonl")
    assert told == [[str(row["step"]), str(row["accuracy"])] for row in rows]


def test_the_fleet_of_the_documentation_is_read(elsewhere, capsys):
    page = ROOT / "docs" / "fleets.md"
    devices, times = [code for code, _ in blocks(page, "csv")]
    (elsewhere / "devices.csv").write_text(devices)
    (elsewhere / "availability.csv").write_text(times + "d2,0,1\n")
    ((code, _),) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), {"__name__": "fleets"})
    assert "('low', 'high') ['d0' 'd1' 'd2'] [4.e+08 5.e+08 4.e+09]" in capsys.readouterr().out
    ((configured, _),) = blocks(page, "py")
    config = SimpleNamespace()
    exec(configured, {"config": config})
    made = build_fleet(num_clients=3, **config.fleet)
    assert made.next_available(np.arange(3), 600.0).tolist() == [np.inf, 600.0, np.inf]
    told = page.read_text()
    assert [
        name
        for name in UNITS
        if f"`{name}`" not in told
        and f"`_{name.split('_', 1)[-1]}`" not in told
        and not re.match("(mj|uj|nj|pj)_per_", name)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_links_and_pictures_of_a_page_exist(page):
    text = page.read_text()
    commands = re.findall(r"(?:fedjax-het |launch\.)(\w+) .*--", text)
    assert set(commands) <= set(cli.COMMANDS)
    before = "".join(before for _, before in blocks(page, "python"))
    written = re.findall(r"`(\w+\.py)`", before)
    for name in re.findall(r"--config=(\S+\.py)", text):
        assert name in written or (ROOT / name).is_file(), name
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target


def _save_start(settings):
    """Writes an untrained model where the configuration expects that of another run."""
    place = Path(settings["model"]["start"])
    partial = ("start", "lora", "trainable")
    whole = {name: v for name, v in settings["model"].items() if name not in partial}
    model = experiment.build_problem({**settings, "model": whole}).model
    place.mkdir(parents=True)
    saving.write(place / saving.MODEL_FILE, model.init(jax.random.key(0)), {})


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_configuration_can_be_run(path, request, tmp_path, monkeypatch):
    text = path.read_text()
    assert "Command:" in text[: text.index("import")]
    settings = experiment.plain(experiment.load_config(str(path)))
    if settings["data"]["source"] not in ("digits", "csv"):
        # Skips, saying how to provide the data, where there are none.
        assert os.path.isdir(request.getfixturevalue("data_dir"))
    try:
        if settings["model"].get("start"):
            monkeypatch.chdir(tmp_path)
            _save_start(settings)
        problem = experiment.build_problem(settings)
    except InputError as error:
        if "no file" not in str(error):
            raise
        pytest.skip(str(error))
    found = methods(settings)
    for label, method in found.items():
        name, options = named({"algorithm": method}, "algorithm")
        algorithms.build(name, problem, **options)
        one = {**settings, "algorithm": method, "run": {**section(settings, "run"), "name": label}}
        assert experiment.resolve(one, problem)["algorithm"]["learning_rate"] > 0
    assert found


def test_the_formats_of_the_documentation_are_read_as_it_says(elsewhere, capsys):
    """Configuration and function of a block give the same samples, and clients with ids."""
    (elsewhere / "tests").symlink_to(ROOT / "tests")
    page, found = ROOT / "docs" / "data.md", {}
    names: dict = {"__name__": "data"}
    for code, _ in blocks(page, "python"):
        names["section"] = None
        try:
            exec(compile(code, str(page), "exec"), names)
        except InputError as error:
            if "pip install" not in str(error):
                raise
            continue
        if names["section"]:
            source = names["section"].pop("source")
            again = load_federated(source, **names["section"])
            assert again.fingerprint() == names["data"].fingerprint()
            found[source] = names["data"].ids
    assert {"csv", "jsonl", "npz", "leaf", "text_matrix"} <= set(found)
    assert all(ids is not None for ids in found.values())
    printed = capsys.readouterr().out
    assert "['ann' 'bob'] [30 30]" in printed
    rows = re.findall(r"^\| .* \| `(\w+)` \| `(\w+)` \|", page.read_text(), flags=re.M)
    assert sorted(rows) == sorted((f.__name__.removeprefix("read_"), f.__name__) for f in READERS)
