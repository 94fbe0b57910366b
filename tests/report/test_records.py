import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.common.writing import write_atomic
from fedjax_het.report import RunRecord, RunWriter, time_to

MAE = {"name": "mae", "higher_is_better": False, "share": False}


def write(record, workdir):
    """Writes a record as a simulation would, step by step."""
    with RunWriter(workdir) as writer:
        writer.write_config(record.config)
        for row in record.metrics:
            writer.write_step(row, [c for c in record.clients if c["step"] == row["step"]])
            evaluated = [c for c in record.client_evaluations if c["step"] == row["step"]]
            if evaluated:
                writer.write_client_evaluations(evaluated)
        writer.write_summary(record.summary, record.population)
    return workdir


@pytest.fixture
def workdir(make_run, tmp_path):
    return write(make_run(steps=4), tmp_path / "run")


def test_what_is_written_is_read_back(make_run, tmp_path):
    record = make_run()
    assert RunRecord.load(write(record, tmp_path / "run")) == record


def test_evaluations_of_clients_are_read_back_if_there_are_any(make_run, tmp_path):
    record = make_run(steps=4, client_rows="personal")
    assert RunRecord.load(write(record, tmp_path / "run")) == record
    assert len(record.client_evaluations) == 24
    write(make_run(steps=4), tmp_path / "other")
    assert not (tmp_path / "other" / "clients_eval.jsonl").exists()
    (tmp_path / "other" / "clients_eval.jsonl").touch()
    assert RunRecord.load(tmp_path / "other").client_evaluations == []


def test_evaluations_of_clients_are_cut_to_the_checkpoint(make_run, tmp_path):
    record = make_run(steps=4, client_rows="own")
    first, last = record.client_evaluations[:12], record.client_evaluations[12:]
    with RunWriter(tmp_path) as writer:
        before = writer.offsets()
        writer.write_client_evaluations(first)
        offsets = writer.offsets()
        writer.write_client_evaluations(last)
    path = tmp_path / "clients_eval.jsonl"
    with RunWriter(tmp_path) as writer:
        with pytest.raises(InputError, match="already holds the rows of a run"):
            writer.write_client_evaluations(last)
        writer.truncate(offsets)
        assert len(path.read_text().splitlines()) == 12
        writer.truncate(before)  # a checkpoint from before the first evaluation does not name it
        assert path.read_bytes() == b""
    path.unlink()
    with RunWriter(tmp_path) as writer, pytest.raises(InputError, match=r"clients_eval.jsonl: 0 b"):
        writer.truncate(offsets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 90.0}, r"clients_eval.jsonl, line 2: accuracy = 90.0 must be a share"),
        ({"personal_accuracy": 1.5}, r"line 2: personal_accuracy = 1.5 must be a share"),
        ({"accuracy": [0.5]}, r"line 2: accuracy = \[0.5\] must be a number >= 0 or null"),
        ({"own": 1}, r"line 2: own = 1 must be true or false"),
        ({"client": 0}, r"line 2: client 0 at step 1 must be the client's only row"),
        ({"step": 9}, r"line 2: client 1 at step 9 must be .* of a step in metrics.jsonl"),
        ({"client": 50}, r"line 2: client = 50 with a device_group must be < 12"),
        ({"device_group": 0.5}, r"line 2: device_group = 0.5 must be a whole number >= 0 or null"),
        ({"client": 50, "device_group": None, "f1_per_class": [0.1, None]}, None),
    ],
)
def test_evaluations_of_clients_are_checked(make_run, change, message):
    record = make_run(steps=2, client_rows="own")
    rows = [{**r, **change} if i == 1 else r for i, r in enumerate(record.client_evaluations)]
    if message is None:
        assert replace(record, client_evaluations=rows).client_evaluations == rows
        return
    with pytest.raises(InputError, match=message):
        replace(record, client_evaluations=rows)


@pytest.mark.parametrize(
    ("column", "summary", "message"),
    [
        ({"accuracy[w]": 90.0}, {}, r"metrics.jsonl, line 3: accuracy\[w\] = 90.0 must be a share"),
        ({"local_accuracy": 90.0}, {}, r"line 3: local_accuracy = 90.0 must be a share"),
        ({}, {"final_local_accuracy": "x"}, r"summary.json: final_local_accuracy = 'x' must be"),
        ({}, {"submodels": {"w": 1}}, r"summary.json, submodels.w: must be a mapping"),
        ({}, {"submodels": {"w": {"accuracy": 2.0}}}, r"submodels.w: accuracy = 2.0 must be a sh"),
        ({"loss[w]": 90.0}, {"submodels": {"w": {"accuracy": None, "loss": 9.0}}}, None),
    ],
)
def test_values_of_sub_models_are_checked(make_run, column, summary, message):
    record = make_run(steps=2)
    metrics = [*record.metrics[:-1], {**record.metrics[-1], **column}]
    changes = {"metrics": metrics, "summary": {**record.summary, **summary}}
    if message is None:
        assert replace(record, **changes).summary["submodels"]["w"]["loss"] == 9.0
        return
    with pytest.raises(InputError, match=message):
        replace(record, **changes)


def test_memory_and_disk_agree_on_numpy_values_and_nan(make_run):
    record = make_run(deadline_s=10.0)
    assert record.clients[-1]["status"] == "dropped"
    assert record.clients[-1]["loss"] is None
    assert record.config["uplink_bytes_per_s"] is None
    assert isinstance(record.metrics[1]["train_loss"], float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.5, np.nan], [np.inf, 2]]), [[1.5, None], [None, 2.0]]),
        (jnp.asarray([1.5], jnp.bfloat16), [1.5]),
        (jnp.asarray(2), 2),
        ({1: (1, "a")}, {"1": [1, "a"]}),
        (float("-inf"), None),
        ({"a": float("inf"), "b": -float("inf")}, {"a": None, "b": None}),
        ({"a": 1e308, "b": 1e308, "c": "d"}, {"a": 1e308, "b": 1e308, "c": "d"}),
        (0.1 + 0.2, 0.30000000000000004),
    ],
)
def test_jsonable(value, expected):
    assert jsonable(value) == expected
    json.dumps(jsonable(value), allow_nan=False)


def test_jsonable_rejects_other_types():
    with pytest.raises(InputError, match=r"info\.thing is of type object"):
        jsonable({"thing": object()}, "info")
    with pytest.raises(InputError, match="complex"):
        jsonable({"z": np.array([1j])})
    with pytest.raises(InputError, match="object"):
        jsonable(np.array([object()]))


def test_a_failed_step_leaves_no_half_row(tmp_path, make_run):
    record = make_run(steps=1)
    with RunWriter(tmp_path) as writer:
        writer.write_step(record.metrics[0], [])
        before = writer.offsets()
        with pytest.raises(InputError):
            writer.write_step({**record.metrics[1], "info": object()}, record.clients)
        assert writer.offsets() == before


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("torn", [b"", b'{"step":99,"virt', b'{"step":3}\n{"st'])
def test_a_resumed_run_cuts_what_came_after_the_checkpoint(make_run, tmp_path, torn):
    record = make_run(steps=5)

    def step(writer, i):
        writer.write_step(record.metrics[i], [c for c in record.clients if c["step"] == i])

    with RunWriter(tmp_path) as writer:
        writer.write_config(record.config)
        for i in range(4):
            step(writer, i)
            if i == 2:
                offsets = writer.offsets()
        writer.write_summary(record.summary, record.population)
    for name in offsets:
        with open(tmp_path / name, "ab") as file:
            file.write(torn)
    with RunWriter(tmp_path) as writer:
        with pytest.raises(InputError, match="already holds the rows of a run"):
            step(writer, 3)
        writer.truncate(json.loads(json.dumps(offsets)))
        assert writer.offsets() == offsets
        assert not (tmp_path / "summary.json").exists()
        for i in range(3, 6):
            step(writer, i)
        writer.write_summary(record.summary, record.population)
    assert RunRecord.load(tmp_path) == record


def test_truncate_to_nothing_starts_over(workdir, make_run):
    with RunWriter(workdir) as writer:
        writer.truncate({})
        assert set(writer.offsets().values()) == {0}
        writer.write_step(make_run().metrics[0], [])


@pytest.mark.parametrize(
    ("offset", "message"), [(10**6, "the checkpoint expects"), (7, "byte 7: is not the end")]
)
def test_truncate_rejects_a_file_that_is_not_the_checkpoint_s(workdir, offset, message):
    with RunWriter(workdir) as writer, pytest.raises(InputError, match=message):
        writer.truncate({"metrics.jsonl": offset})


def test_writer_needs_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        RunWriter(tmp_path / "file" / "run")


def test_load_names_a_missing_directory(tmp_path):
    with pytest.raises(InputError, match="is not a directory; name the work directory"):
        RunRecord.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "clients.jsonl", "summary.json"])
def test_load_names_a_missing_or_empty_file(workdir, name):
    (workdir / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}: is (empty|not valid JSON)"):
        RunRecord.load(workdir)
    (workdir / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: does not exist; name the work directory"):
        RunRecord.load(workdir)


def test_load_names_a_directory_in_place_of_a_file(workdir):
    (workdir / "summary.json").unlink()
    (workdir / "summary.json").mkdir()
    with pytest.raises(InputError, match=r"summary.json: is a directory"):
        RunRecord.load(workdir)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], r"metrics.jsonl, line 5: is torn .* resume the run"),
        (lambda b: b[:-20], r"metrics.jsonl, line 5: is torn"),
        (lambda b: b + b"\n", r"metrics.jsonl, line 6: is not valid JSON"),
        (lambda b: b + b"[1]\n", r"line 6: must be a mapping, not list"),
        (lambda b: b"\xff" + b, r"metrics.jsonl, line 1: is not UTF-8 text \(byte 0\)"),
        (lambda b: b.replace(b'"wall_s":0.05', b'"wall_s":NaN', 1), r"line 2: .*NaN is not a JSON"),
        (lambda b: b.replace(b'"wall_s":0.05', b'"wall_s":null', 1), r"line 2: wall_s = None must"),
        (lambda b: b.replace(b'"step":3', b'"step":"3"'), r"line 4: step = '3' must be a whole"),
        (lambda b: b.replace(b'"step":3', b'"step":true'), r"line 4: step = True must be a whole"),
        (lambda b: b.replace(b'"step":3', b'"step":1'), r"line 4: step 1 at .* must come after"),
        (lambda b: b.replace(b'"virtual_s"', b'"virtual"', 1), r"line 1: 'virtual_s': is missing"),
        (lambda b: b.replace(b'"accuracy":0.1', b'"accuracy":10.0'), r"10.0 must be a share"),
        (lambda b: b.replace(b'"accuracy"', b'"acc"'), r"no row has a finite 'accuracy'"),
        (lambda b: b.replace(b'"bytes_up":', b'"bytes_up":1'), r"bytes_up = .*add up to"),
    ],
)
def test_load_names_the_line_of_damaged_metrics(workdir, damage, message):
    path = workdir / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        RunRecord.load(workdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client": 12}, r"line 3: client = 12 must be < 12"),
        ({"client": -1}, r"line 3: client = -1 must be a whole number"),
        ({"status": "late"}, r"line 3: status 'late': must be one of"),
        ({"exit_block": 4}, r"line 3: .*exit_block = 4 must be ordered and < num_blocks = 4"),
        ({"first_block": 3, "exit_block": 1}, r"line 3: first_block = 3, exit_block = 1"),
        ({"compute_s": "1"}, r"line 3: compute_s = '1' must be a number"),
        ({"step": 99}, r"line 3: step 99, .* must be a step of metrics.jsonl"),
        ({"dispatched_s": 1e9}, r"line 3: step 1, dispatched at 1000000000.0 s"),
    ],
)
def test_tasks_are_checked(make_run, change, message):
    record = make_run(steps=2)
    clients = [{**row, **change} if i == 2 else row for i, row in enumerate(record.clients)]
    with pytest.raises(InputError, match=message):
        replace(record, clients=clients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "seed = '0' must be a whole number"),
        ({"num_blocks": 0, "block_names": []}, "num_blocks = 0: must be >= 1"),
        ({"block_names": ["a"]}, "1 block_names: must be num_blocks = 4"),
        (
            {"block_names": ["a", "b", True, "d"]},
            r"block_names holds \[True\]: must be a list, each",
        ),
        ({"seed": 10**30}, "seed = 1000000000000000000000000000000 must be a whole number"),
        ({"virtual_s": 10**400}, "virtual_s = 10* must be a number"),
        ({"device_groups": [0] * 12}, "is of an earlier version, .* population.npz; run the same"),
        ({"num_clients": 0}, "num_clients = 0: must be >= 1"),
        ({"num_clients": 11}, "num_clients = 11, .*: population.npz holds 12 clients, 10 classes"),
        ({"num_clients": 2.0}, "num_clients = 2.0 must be a whole number"),
        ({"data": {"num_classes": 10}}, "'name': is missing"),
        ({"data": {"name": "d"}}, "'num_classes': is missing"),
        ({"data": {"name": "d", "num_classes": None}}, "num_classes = None: population.npz holds"),
        ({"targets": [{"step": 1}]}, r"targets\[0\]: 'accuracy': is missing"),
        ({"targets": None}, "targets = None must be a list"),
        ({"metric": {"name": "mae", "share": False}}, "'higher_is_better': is missing"),
        ({"metric": {**MAE, "share": 0}}, "metric: share = 0 must be true or false"),
        ({"metric": MAE}, "'final_mae': is missing"),
        ({"metric": MAE, "final_mae": -1.0, "best_mae": None}, r"targets\[0\]: 'mae': is missing"),
        (
            {"metric": MAE, "final_mae": 1.0, "best_mae": 1.0, "targets": [{"mae": -1.5}]},
            "no row has a finite 'mae'",
        ),
    ],
)
def test_the_summary_is_checked(make_run, change, message):
    record = make_run(steps=2)
    with pytest.raises(InputError, match=message):
        replace(record, summary={**record.summary, **change})


def test_a_record_without_tasks_or_configuration_is_refused(make_run):
    record = make_run(steps=2)
    with pytest.raises(InputError, match="holds no client task"):
        replace(record, clients=[])
    with pytest.raises(InputError, match=r"config.json: must be a mapping, not NoneType"):
        replace(record, config=None)
    with pytest.raises(InputError, match="versions = True must be a mapping or null"):
        replace(record, config={"versions": True})


def test_time_to_is_the_first_evaluation_and_never_interpolates(make_run):
    record = make_run(steps=20, every=5)
    rows = [row for row in record.metrics if row.get("accuracy") is not None]
    first = next(row for row in rows if row["accuracy"] >= 0.5)
    assert first["step"] == 5
    assert time_to(record, 0.5) == first["virtual_s"]
    assert time_to(record, 0.5, "wall_s") == first["wall_s"]
    assert time_to(record, 0.5, "step") == 5
    sent = sum(row.get("bytes_up", 0) for row in record.metrics if row["step"] <= 5)
    assert time_to(record, 0.5, "bytes_up") == sent
    assert time_to(record, first["accuracy"]) == first["virtual_s"]
    assert time_to(record, math.nextafter(rows[-1]["accuracy"], 2)) != rows[-1]["virtual_s"]
    assert time_to(record, 1.0) is None
    assert time_to(record, 0.05) == 0.0


@pytest.mark.parametrize("target", [0, -0.1, 90])
def test_time_to_rejects_a_target_that_is_no_share(make_run, target):
    with pytest.raises(InputError, match=r"write 90 % as 0\.9"):
        time_to(make_run(steps=2), target)


def test_time_to_a_metric_of_which_lower_is_better(two_regressions):
    record = two_regressions["FedAvg"][0]
    first = next(row for row in record.metrics if row["mae"] <= 3.0)
    assert first["step"] > 1
    assert time_to(record, 3.0) == first["virtual_s"]
    assert time_to(record, first["mae"], "step") == first["step"]
    assert time_to(record, 25.0) == 0.0
    assert time_to(record, -1.0) is None
    with pytest.raises(InputError, match="mae = nan: must be finite"):
        time_to(record, math.nan)


def test_the_metric_of_a_record(make_run, two_regressions):
    record, old = two_regressions["FedAvg"][0], make_run(steps=2)
    assert (record.metric.name, record.metric.higher_is_better, record.metric.share) == (
        "mae",
        False,
        False,
    )
    assert record.best == min(row["mae"] for row in record.metrics)
    assert record.final == record.metrics[-1]["mae"]
    assert "metric" not in old.summary
    assert (old.metric.name, old.metric.higher_is_better, old.metric.share) == (
        "accuracy",
        True,
        True,
    )
    assert (old.best, old.final) == (old.summary["best_accuracy"], old.summary["final_accuracy"])
    np.testing.assert_array_equal(record.evaluations()[1], record.evaluations("step", "mae")[1])
    assert record.evaluations("step", "client_mae_mean")[0].tolist() == list(range(1, 21))


def test_a_share_of_another_name_is_checked(make_run):
    record = make_run(steps=2, metric={"name": "auroc", "higher_is_better": True, "share": True})
    assert record.best == record.summary["best_auroc"]
    for name in ("auroc", "val_auroc"):
        metrics = [*record.metrics[:-1], {**record.metrics[-1], name: 1.5}]
        with pytest.raises(InputError, match=f"line 3: {name} = 1.5 must be a share"):
            replace(record, metrics=metrics)


def test_a_column_of_lists_is_no_curve(make_run):
    with pytest.raises(InputError, match="column = 'confusion_matrix': holds more than a number"):
        make_run(steps=2).evaluations("step", "confusion_matrix")


def test_an_unknown_column_is_named(make_run):
    with pytest.raises(InputError, match="column = 'seconds': no row"):
        make_run(steps=2).evaluations("seconds")
