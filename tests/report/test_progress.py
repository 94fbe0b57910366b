"""A run is read while it goes on, and its page is served on this machine only."""

import http.client
import json
import threading

import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.report import RunRecord, RunWriter, live, page, serving
from fedjax_het.report.page import run_content
from fedjax_het.report.progress import JOBS, Watched, record_so_far


def facts_of(record):
    """What a run states of itself before its first step."""
    known = ("name", "algorithm", "seed", "num_clients", "num_blocks", "block_names", "data")
    targets = [{"accuracy": target["accuracy"]} for target in record.summary["targets"]]
    return {**{key: record.summary[key] for key in known}, "targets": targets}


def write(record, workdir, steps):
    """Writes the first steps of a run that goes on."""
    with RunWriter(workdir) as writer:
        writer.write_config(record.config)
        writer.write_facts(facts_of(record), record.population)
        for row in record.metrics[:steps]:
            writer.write_step(row, [c for c in record.clients if c["step"] == row["step"]])
            evaluated = [c for c in record.client_evaluations if c["step"] == row["step"]]
            if evaluated:
                writer.write_client_evaluations(evaluated)
    return workdir


def test_a_run_so_far_is_a_record_of_its_steps(make_run, tmp_path):
    whole = make_run(steps=6, client_rows="own", joules=True, deadline_s=9.0)
    record = record_so_far(write(whole, tmp_path, 5))
    assert record.metrics == whole.metrics[:5]
    assert record.clients == [row for row in whole.clients if row["step"] < 5]
    assert record.client_evaluations == [r for r in whole.client_evaluations if r["step"] == 3]
    assert record.population == whole.population
    assert record.summary["ended"] is None
    assert record.summary["steps"] == 4
    assert record.summary["dropped"] == sum(r["status"] == "dropped" for r in record.clients) > 0
    assert record.summary["joules"] == sum(row["joules"] for row in whole.metrics[1:5])
    # At its end the totals are those of the summary, which is then read instead.
    complete = record_so_far(write(whole, tmp_path / "all", 7)).summary
    for name in ("bytes_up", "bytes_down", "flops", "joules", "tasks", "merged", "dropped"):
        assert complete[name] == pytest.approx(whole.summary[name], rel=1e-12)
    assert complete["final_accuracy"] == whole.final
    with RunWriter(tmp_path / "all") as writer:
        writer.write_summary(whole.summary, whole.population)
    assert record_so_far(tmp_path / "all") == whole == RunRecord.load(tmp_path / "all")


def test_what_is_being_written_is_left_out(make_run, tmp_path):
    whole = make_run(steps=3)
    write(whole, tmp_path, 3)
    later = json.dumps(whole.clients[-1]) + "\n"
    with (tmp_path / "clients.jsonl").open("a") as file:
        file.write(later + later[:20])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "virt')
    record = record_so_far(tmp_path)
    assert record.metrics == whole.metrics[:3]
    assert {row["step"] for row in record.clients} == {1, 2}


def test_there_is_no_record_before_the_first_evaluated_step(make_run, tmp_path):
    whole = make_run(steps=3)
    assert record_so_far(tmp_path) is None
    assert record_so_far(write(whole, tmp_path / "began", 1)) is None
    (tmp_path / "began" / "metrics.jsonl").write_text('{"step": 0}\nno row\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: is not valid JSON"):
        record_so_far(tmp_path / "began")


def test_a_comparison_comes_in_its_order_and_a_sweep_by_trials(make_run, tmp_path):
    for name, seed in (("FedPMT", 1), ("FedAvg", 1), ("FedAvg", 0)):
        write(make_run(name, seed, steps=2), tmp_path / "c" / name.lower() / f"seed{seed}", 3)
    content = Watched(tmp_path / "c").content()
    assert list(content.runs) == ["FedAvg", "FedPMT"]
    jobs = {"methods": [{"name": "FedPMT"}, {"name": "FedAvg"}], "seeds": [0, 1], "targets": [0.3]}
    (tmp_path / "c" / JOBS).write_text(json.dumps(jobs))
    watched = Watched(tmp_path / "c")
    content = watched.content()
    assert {name: [run.summary["seed"] for run in runs] for name, runs in content.runs.items()} == {
        "FedPMT": [1],
        "FedAvg": [0, 1],
    }
    assert [target.goal for target in content.results[0].targets] == [0.3]
    assert (watched.kind, watched.done) == ("comparison", False)
    for number in (2, 10):
        place = tmp_path / "s" / "trials" / "fedavg" / str(number) / "seed7"
        write(make_run("FedAvg", 7, steps=2), place, 3)
    swept = Watched(tmp_path / "s")
    assert swept.kind == "sweep"
    assert list(swept.content().runs) == ["fedavg, trial 2", "fedavg, trial 10"]


@pytest.fixture
def one_run(make_run, tmp_path, monkeypatch):
    """The live page of a run of two steps, without figures."""
    monkeypatch.setattr(page, "inline_svg", lambda *figure: "<svg></svg>")
    place = write(make_run(steps=2), tmp_path / "run", 3)
    return live.LivePage(Watched(place), lambda path: None)


def test_damage_is_told_and_the_last_page_stays(one_run, tmp_path):
    assert one_run.state.state == "stopped"
    assert one_run.state.text.startswith("Stopped before the end: step 2, ")
    before, version = one_run.page, one_run.version
    (tmp_path / "run" / "config.json").write_text("{")
    one_run._next_s = 0.0
    one_run.refresh()
    assert "The records cannot be read" in one_run.state.text
    assert "config.json: is not valid JSON" in one_run.state.text
    assert (one_run.page, one_run.version) == (before, version)


def test_the_server_answers_only_to_this_machine(one_run):
    server = serving.Server("127.0.0.1", 0, one_run)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def ask(path, method="GET", host=None):
        connection = http.client.HTTPConnection(*server.server_address, timeout=60)
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    try:
        assert ask("/") == (200, one_run.page)
        told = json.loads(ask("/state")[1])
        assert told == {
            "version": one_run.version,
            "state": "stopped",
            "text": one_run.state.text,
        }
        assert ask("/config.json")[0] == 404
        assert ask("/../run/config.json")[0] == 404
        assert ask("/", "POST")[0] == 501
        assert ask("/", host="evil.example:80")[0] == 403
        with pytest.raises(
            InputError, match=r"--port=\d+: cannot be used \(Address already in use"
        ):
            serving.Server("127.0.0.1", server.server_port, one_run)
    finally:
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.org", "::", ""])
def test_other_addresses_are_refused(host):
    with pytest.raises(InputError, match=r"must be an address of the loopback.*; use 127.0.0.1"):
        serving.require_loopback(host)


def test_loopback_addresses_are_taken():
    assert serving.require_loopback("localhost") == "127.0.0.1"
    assert serving.require_loopback("::1") == "::1"


def test_a_run_that_is_watched_has_its_content(make_run, tmp_path):
    record = make_run(steps=2)
    place = write(record, tmp_path, 3)
    assert Watched(place).content().lead == run_content(record).lead
