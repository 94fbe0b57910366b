"""The documentation works as it is written: blocks of code, commands, links, configurations.

`doc_pages.py` says how a page's blocks are run. Every page is run once; some are also judged by
what they printed, wrote or defined.
"""

import importlib
import os
import re
import sys
from pathlib import Path

import doc_pages
import jax
import numpy as np
import pytest
import test_public_names
from doc_pages import ROOT
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

# The reader of configuration files in ml_collections uses a method that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

PAGES = sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("*.md"))
# Pages that a test of their own runs and judges.
JUDGED = ("README", "new_method", "composing", "sinks", "fleets", "data")
# Pages whose blocks take more than ten seconds.
LONG = ("docs/gallery", "docs/howto/compose", "docs/howto/sweep", "docs/sweeps", "docs/tour")
CONFIGS = sorted(ROOT.glob("configs/*.py"))


def name_of(page):
    """The path of a page below the checkout, without its ending."""
    return str(page.relative_to(ROOT).with_suffix(""))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current directory on the import path; what is imported from it is forgotten.

    It holds what a checkout has beside the package.
    """
    known, registered, sinks = set(sys.modules), set(algorithms.ALGORITHMS), set(fh.SINKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    for name in set(algorithms.ALGORITHMS) - registered:
        del algorithms.ALGORITHMS[name]
    for name in set(fh.SINKS) - sinks:
        del fh.SINKS[name]


def test_the_new_method_of_the_documentation_runs(elsewhere, monkeypatch):
    page = ROOT / "docs" / "new_method.md"
    assert set(doc_pages.files(page)) == {
        "random_depth.py",
        "digits_random_depth.py",
        "rolling.py",
    }
    doc_pages.run(page)
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
    (elsewhere / "rolling.py").write_text(
        doc_pages.files(ROOT / "docs" / "new_method.md")["rolling.py"]
    )
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
    made = {}

    def reused(algorithm, resources):
        # Compiling one program a method gives the same numbers, sooner.
        if id(algorithm) not in made:
            masked = Resources(resources.problem, execution="masked")
            made[id(algorithm)] = Engine(algorithm, masked)
        return made[id(algorithm)]

    for module in ("simulate", "simulation"):
        monkeypatch.setattr(sys.modules[f"fedjax_het.simulation.{module}"], "Engine", reused)
    names = doc_pages.run(readme)
    printed = capsys.readouterr().out
    for method in names["methods"]:
        assert method in printed
    assert (elsewhere / "runs" / "mine" / "report.html").exists()


def test_the_composed_method_of_the_documentation_runs(elsewhere, capsys):
    page = ROOT / "docs" / "composing.md"
    names = doc_pages.run(page)
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


def test_the_sinks_of_the_documentation_get_rows(elsewhere, capsys, monkeypatch):
    doc_pages.run(ROOT / "docs" / "sinks.md")
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = read_lines(elsewhere / "runs" / "printed" / "metrics.jsonl")
    assert told == [[str(row["step"]), str(row["accuracy"])] for row in rows]


def test_the_fleet_of_the_documentation_is_read(elsewhere, capsys):
    page = ROOT / "docs" / "fleets.md"
    names = doc_pages.run(page)
    assert "('low', 'high') ['d0' 'd1' 'd2'] [4.e+08 5.e+08 4.e+09]" in capsys.readouterr().out
    made = build_fleet(num_clients=3, **names["config"].fleet)
    assert made.next_available(np.arange(3), 600.0).tolist() == [np.inf, 600.0, np.inf]
    told = page.read_text()
    assert [
        name
        for name in UNITS
        if f"`{name}`" not in told
        and f"`_{name.split('_', 1)[-1]}`" not in told
        and not re.match("(mj|uj|nj|pj)_per_", name)
    ] == []


def _params():
    for page in PAGES:
        name = name_of(page)
        if name.rpartition("/")[2] in JUDGED and name.count("/") < 2:
            continue
        marks = [pytest.mark.slow] if name in LONG else []
        yield pytest.param(page, id=name, marks=marks)


@pytest.mark.parametrize("page", list(_params()))
def test_the_blocks_of_a_page_run(page, elsewhere):
    doc_pages.run(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_configurations_in_the_text_of_a_page_exist(page):
    text = page.read_text()
    commands = re.findall(r"(?:fedjax-het |launch\.)(\w+) .*--", text)
    assert set(commands) <= set(cli.COMMANDS)
    for name in re.findall(r"--config=(\S+\.py)", text):
        assert name in doc_pages.files(page) or (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    """To a file of the repository, and to a heading of it as GitHub and the site name it."""
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def anchors(page):
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_contents_of_the_site():
    docs = ROOT / "docs"
    listed = []
    for entries in re.findall(
        r"^```{toctree}\n(.*?)^```", (docs / "index.md").read_text(), re.M | re.S
    ):
        for line in re.findall(r"^[^:\n].*", entries, flags=re.M):
            entry = re.sub(r".*<(.*)>", r"\1", line)
            found = [*docs.glob(f"{entry}.md")]
            assert found or entry.startswith("api/"), entry
            listed += found
    pages = set(docs.glob("**/*.md")) - {docs / "index.md"}
    assert sorted(map(name_of, pages - set(listed))) == []


def test_the_reference_has_the_public_rooms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    reference = importlib.import_module("reference")
    assert set(reference.ROOMS) == set(test_public_names.PUBLIC)


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
    page, found = ROOT / "docs" / "data.md", {}

    def compared(names, example):
        section = names.pop("section", None)
        if section:
            source = section.pop("source")
            again = load_federated(source, **section)
            assert again.fingerprint() == names["data"].fingerprint()
            found[source] = names["data"].ids

    doc_pages.run(page, compared)
    assert {"csv", "jsonl", "npz", "leaf", "text_matrix"} <= set(found)
    assert all(ids is not None for ids in found.values())
    printed = capsys.readouterr().out
    assert "['ann' 'bob'] [30 30]" in printed
    rows = re.findall(r"^\| .* \| `(\w+)` \| `(\w+)` \|", page.read_text(), flags=re.M)
    assert sorted(rows) == sorted((f.__name__.removeprefix("read_"), f.__name__) for f in READERS)
