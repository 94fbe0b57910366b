"""From configurations to runs and comparisons, and what they leave behind."""

import importlib.util
import json

import pytest
from malformed.case import BASE, changed, problem
from ml_collections import ConfigDict

from fedjax_het import algorithms, experiment
from fedjax_het.common.errors import InputError
from fedjax_het.config import methods
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation import server

METRICS = (
    "step virtual_s wall_s compile_s accuracy loss train_loss bytes_up bytes_down clients merged "
    "dropped nonfinite compiled_programs client_accuracy_mean client_accuracy_worst_decile"
)
CLIENTS = (
    "step client version staleness dispatched_s arrived_s download_s compute_s upload_s bytes_down "
    "bytes_up flops device_flops_per_s first_block exit_block cut_block samples steps loss status"
)
SUMMARY = (
    "name algorithm seed steps final_accuracy best_accuracy targets virtual_s wall_s compile_s "
    "bytes_up bytes_down flops tasks merged dropped nonfinite num_clients num_blocks block_names"
)
PLOTS = ("accuracy_vs_time", "accuracy_vs_round", "accuracy_vs_bytes_up", "timeline_0")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rounds(monkeypatch):
    """Names the method of every server step that is really computed."""
    done = []
    step = server.Server.advance

    def counted(self, most, ends):
        taken, records = step(self, most, ends)
        done.extend([self._algorithm.name] * taken)
        return taken, records

    monkeypatch.setattr(server.Server, "advance", counted)
    return done


@pytest.fixture
def without_pages(monkeypatch):
    """Leaves out the pages of single runs, which take longer to draw than to train."""
    monkeypatch.setattr(experiment, "write_report", lambda record, path: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds and its directory."""
    workdir = tmp_path_factory.mktemp("run") / "deep" / "er"
    config = changed(run={"rounds": 2, "targets": (0.01, 0.999), "checkpoint_every": 1})
    announced = []
    result = experiment.train(ConfigDict(config), workdir, announce=announced.append)
    return result, workdir, announced


def test_a_run_leaves_what_the_design_lists(run):
    result, workdir, _ = run
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json",
        "facts.json",
        "metrics.jsonl",
        "clients.jsonl",
        "summary.json",
        "population.npz",
        "model.safetensors",
        "checkpoints",
        "report.html",
    }
    assert result.faults == []
    assert result.record == RunRecord.load(workdir)
    metrics, clients = lines(workdir / "metrics.jsonl"), lines(workdir / "clients.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    for row in metrics[1:]:
        assert set(METRICS.split()) <= set(row)
        assert row["clients"] == row["merged"] == 4
    assert len(clients) == 2 * 4
    assert all(set(row) == set(CLIENTS.split()) for row in clients)
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(SUMMARY.split()) <= set(summary)
    first, last = summary["targets"]
    assert (first["step"], first["virtual_s"]) == (0, 0.0)
    assert last == {"accuracy": 0.999, "step": None, "virtual_s": None, "wall_s": None}
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [
        "00000001",
        "00000002",
    ]
    assert "</html>" in (workdir / "report.html").read_text()


def test_the_saved_configuration_is_resolved_and_says_where_it_ran(run):
    _, workdir, announced = run
    saved = json.loads((workdir / "config.json").read_text())
    assert {"versions", "device", "git_revision", "identity", "cost"} <= set(saved)
    assert saved["data"]["partition"] == {
        "name": "dirichlet",
        "alpha": 0.5,
        "min_size": 10,
        "balanced": True,
    }
    assert saved["data"]["seed"] == 0
    assert saved["fleet"]["relative_speeds"] == [0.34, 0.71, 1.0]
    assert saved["algorithm"] == {
        "name": "fedavg",
        "learning_rate": 0.1,
        "momentum": 0.0,
        "client_optimizer": "sgd",
        "weight_decay": 0.0,
        "clip_norm": None,
        "schedule": "constant",
        "decay_rounds": 50.0,
        "decay_factor": 0.1,
        "warmup_rounds": 0,
        "batch_size": 20,
        "epochs": 1,
        "local_steps": None,
        "clients_per_round": None,
        "weighting": "samples",
        "select": None,
        "compose": None,
        "proximal": 0.0,
    }
    assert (saved["run"]["rounds"], saved["run"]["eval_every"]) == (2, 1)
    assert saved["cost"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert [resolved["algorithm"] for resolved in announced] == [saved["algorithm"]]


def test_the_page_of_a_run_is_rebuilt(run):
    _, workdir, _ = run
    page = workdir / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert experiment.report(workdir) == page
    assert page.read_bytes() == before


def test_a_finished_run_is_read_back_and_a_longer_one_goes_on(run, rounds, without_pages):
    result, workdir, _ = run
    config = changed(run={"rounds": 2, "targets": (0.01, 0.999), "checkpoint_every": 1})
    again = experiment.train(config, workdir, problem())
    assert rounds == []
    assert again.record.metrics == result.record.metrics
    config["run"] |= {
        "rounds": 3,
        "sinks": ["tensorboard"] if importlib.util.find_spec("tensorboardX") else [],
    }
    longer = experiment.train(config, workdir, problem())
    assert rounds == ["fedavg"]
    assert longer.record.metrics[:3] == result.record.metrics
    assert longer.record.summary["steps"] == 3


def test_tensorboard_events_of_the_longer_run(run):
    pytest.importorskip("tensorboardX")
    _, workdir, _ = run
    (events,) = (workdir / "tensorboard").iterdir()
    assert b"client_accuracy_worst_decile" in events.read_bytes()


def test_another_configuration_does_not_go_on_with_a_run(run):
    _, workdir, _ = run
    config = changed(algorithm__momentum=0.5)
    with pytest.raises(InputError, match=r"algorithm\.momentum: 0\.0 -> 0\.5"):
        experiment.train(config, workdir, problem())


def test_without_a_directory_the_record_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = experiment.train(BASE)
    assert result.record.summary["steps"] == 1
    assert list(tmp_path.iterdir()) == []


def test_comparison_of_methods_and_seeds_resumes(tmp_path, rounds, monkeypatch, without_pages):
    first = ConfigDict(changed(run__rounds=2))
    second = ConfigDict(changed(run__rounds=2))
    second.compare = {
        "methods": {"FedPMT": {"name": "fedpmt", "depths": (1, 2)}},
        "seeds": (0, 1),
        "targets": (0.05, 0.999),
    }
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "compare_records", lambda *parts: None)
        experiment.compare([first], tmp_path, seeds=[0])
    assert rounds == 2 * ["fedavg"]

    result = experiment.compare([first, second], tmp_path)
    assert rounds == 4 * ["fedavg"] + 4 * ["fedpmt"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"fedavg", "fedpmt"}
    assert [m.name for m in result.methods] == ["fedavg", "FedPMT"]
    assert "FedPMT" in result.table()
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved == json.loads(json.dumps(result.data()))
    assert saved["targets"] == [0.05, 0.999]
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in PLOTS)
    page = (tmp_path / "report.html").read_bytes()

    again = experiment.compare([first, second], tmp_path)
    assert len(rounds) == 8
    assert again.data() == result.data()

    (tmp_path / "report.html").unlink()
    assert experiment.report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == page


def test_methods_share_training_options_but_no_others():
    config = {
        "algorithm": {"name": "fedprox", "learning_rate": 0.1, "batch_size": 8, "mu": 0.5},
        "compare": {
            "methods": {
                "same": {},
                "stronger": {"mu": 1.0},
                "other": {"name": "fedpmt", "batch_size": 4},
            }
        },
    }
    assert methods(config) == {
        "same": config["algorithm"],
        "stronger": {**config["algorithm"], "mu": 1.0},
        "other": {"name": "fedpmt", "learning_rate": 0.1, "batch_size": 4},
    }


def test_options_of_every_algorithm_are_known():
    for name in algorithms.ALGORITHMS:
        assert set(algorithms.default_options(name)) <= algorithms.option_names(name)
    assert "learning_rate" in algorithms.option_names("fedavg")
    assert algorithms.default_options("fedavg")["learning_rate"] is None
    with pytest.raises(InputError, match="'fedavg'"):
        algorithms.default_options("fedavgg")


PLANNED = {
    "algorithm": {"name": "salf", "learning_rate": 0.1, "rounds": 3, "total_s": 6.0},
    "fleet": {"name": "adel", "stages": 2, "flops_per_sample_layer": 1700.0},
}


def test_a_plan_is_printed_drawn_and_kept(tmp_path):
    shown = experiment.plan(changed(**PLANNED), tmp_path / "new" / "plan")
    assert shown.method == "salf"
    kept = json.loads((tmp_path / "new" / "plan" / "plan.json").read_text())
    assert kept["by_round"]["deadline_s"]["values"] == pytest.approx([2.0] * 3)
    assert (tmp_path / "new" / "plan" / "plan.txt").read_text().startswith("salf: rounds = 3, ")
    assert (tmp_path / "new" / "plan" / "plan.png").read_bytes()[1:4] == b"PNG"


def test_a_method_without_a_preview_is_refused_by_name():
    with pytest.raises(InputError, match="algorithm 'fedavg': plans no rounds ahead"):
        experiment.plan(changed())
