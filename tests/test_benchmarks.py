"""The benchmarks run at tiny sizes and report what they say they report; never how fast."""

import dataclasses
import functools
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import digits_problem

import fedjax_het as fh
from benchmarks import harness, roofline
from benchmarks.micro import (
    choices,
    parts,
    precision,
    programs,
    rounds,
    selection,
    training,
    widths,
    winograd,
)
from benchmarks.micro import conv as micro_conv
from benchmarks.micro.choices import text_work
from benchmarks.micro.training import INPUT_SHAPES, make_work
from benchmarks.reproduce import (
    compression,
    dtfl_timing,
    fedel_energy,
    fedel_table1,
    fedel_table1_plans,
    fedel_table1_report,
    heterofl,
    oort,
    privacy,
)
from benchmarks.scale import accelerator, buffers, overlap, population, streaming
from benchmarks.scale import cohort as scale
from benchmarks.studies import sensors
from fedjax_het import algorithms, models
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.data import from_arrays, partition
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.lowering import Lowering, lowering
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.simulate import simulate

pytestmark = pytest.mark.slow


def test_contenders_are_called_in_turn_after_a_first_call_each():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = harness.interleave(runs, repeats=2)
    assert "".join(calls) == "abcabcabc"
    assert [len(times[name].samples_s) for name in "abc"] == [2, 2, 2]


def test_ratios_are_taken_within_a_round():
    a = harness.Timed(9.0, [1.0, 4.0, 3.0])
    b = harness.Timed(9.0, [2.0, 4.0, 1.0])
    assert harness.ratios(a, b) == harness.Spread(1.0, 0.5, 3.0)
    assert str(harness.Spread(1.0, 0.5, 3.0)) == "1 (0.5-3)"
    assert a.compile_s == 6.0
    busy, idle = (harness.Timed(9.0, [1.0], processors) for processors in ([3.0], [2.0]))
    assert harness.ratios(busy, idle, processors=True).median == 1.5


def test_table_aligns_columns():
    text = harness.table(("name", "x"), [("a", "1"), ("long name", "23")])
    assert text.splitlines() == ["name        x", "---------  --", "a           1", "long name  23"]


@pytest.fixture(scope="module")
def trained():
    return training.measure("logistic", clients=2, steps=2, batch=4, repeats=1)


def test_everyone_trains_the_same_model(trained):
    rows = [row for row in trained["contenders"] if "samples" in row]
    names = [row["name"] for row in rows]
    assert names[:4] == [
        "ours",
        "vmap over clients, lax.conv",
        "loop, jit per client, lax.conv",
        "loop, jit per step, lax.conv",
    ]
    assert [row["samples"] for row in rows[:4]] == [16, 16, 16, 16]
    assert max(row["difference"] for row in rows) < 1e-6
    assert rows[0]["time_per_sample_over_ours"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_table_of_training_names_every_contender(trained):
    text = training.report(trained)
    assert all(row["name"] in text for row in trained["contenders"])
    assert [row["flop_share"] for row in trained["depths"]] == [1.0]


@pytest.mark.parametrize("model", ["adel_cnn2", "resnet20"])
def test_torch_twins_have_our_weights_and_give_our_logits(model):
    torch = pytest.importorskip("torch")
    from benchmarks.micro.torch_peer import params_of, twin
    from benchmarks.peers.torch_net import channels_first

    work = training.make_work(model, clients=1, steps=1, batch=2)
    start = work.problem.model.init(jax.random.key(0))
    net = twin(model, start)
    assert training.difference(params_of(net, start), start.params) == 0.0
    x = np.random.default_rng(0).random((3, *work.problem.model.input_shape), np.float32)
    ours, _ = jax.jit(work.problem.model.apply)(start, jnp.asarray(x))
    with torch.no_grad():
        np.testing.assert_allclose(net(channels_first(x)).numpy(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_scale_reports_memory_and_programs():
    row = scale.one_size(6, pool=200, chunk=4)
    assert row["clients"] == 6
    assert row["peak_bytes"] > row["index_bytes"] > 0
    assert row["programs"] == 1
    counts = scale.compile_counts(rounds=2, most=2, chunk=2)
    assert counts["programs"] <= counts["bound"] == 3
    assert len(counts["programs_after_round"]) == 2
    facts = {"machine": harness.machine(), "chunk": 4, "pool": 200, "sizes": [row, row]}
    text = scale.report({**facts, "peak_ratio": 1.0, "compiles": [counts]})
    assert "flat within 10 %" in text
    assert "NOT FLAT" in scale.report({**facts, "peak_ratio": 1.2, "compiles": []})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_trains_one_model_from_memory_and_from_a_file():
    results = streaming.measure(megabytes=1, clients=20, rounds=2, cohort=3)
    assert len({row["model"] for row in results["rows"]}) == 1
    assert "mapped, streamed" in streaming.report(results)


@pytest.mark.parametrize("model", parts.MODELS)
def test_parts_of_a_step_have_the_flops_of_its_price(model):
    found = parts.network(model, batch=2)
    work = make_work if model in INPUT_SHAPES else text_work
    cost = work(model, 1, 1, 2).problem.cost
    # What the price counts are products and convolutions, of two samples here.
    ours = sum(count * part.flops for part, count in found.items())
    np.testing.assert_allclose(ours, 2 * cost.step_flops(), rtol=0.05)


def test_choices_replace_one_of_the_tables():
    results = choices.measure("mlp", clients=1, repeats=1)
    named = [row["choice"] for row in results["rows"]]
    assert named[0] == "table"
    assert named[-1] == "table again"
    assert {"lowerings measured", "parts: 2", "a client a core"} <= set(named)
    assert "processor time" in choices.report(results)


def test_programs_counts_what_was_compiled():
    owned, rented = (programs.one("mlp", rents, 1) for rents in (False, True))
    assert owned["windows"] == rented["windows"] == owned["programs"] > rented["programs"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_population_reports_what_is_around_the_training():
    compile = population.Compiler.compile
    rows = [population.one_run(40, name, cohort=4, steps=2) for name in population.METHODS]
    assert population.Compiler.compile is compile
    for row in rows:
        assert row["data_bytes"] == 40 * (2 * (32 * 4 + 4 + 4) + 4)
        assert all(each["wall"] > 0 for each in row["seconds"].values())
        assert row["seconds"]["step"]["wall"] <= row["slowest_step_s"]
        assert row["tasks"] >= 2
    facts = {"machine": harness.machine(), "cohort": 4, "steps": 2}
    assert "fedasync" in population.report({**facts, "rows": rows})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_buffers_take_what_the_formula_says():
    labels = ("room for whole models", "the author's densities")
    rows = [buffers.one_case(label, 20, hidden=16, merges=3) for label in labels]
    for row in rows:
        assert row["kept"] == 20
        assert row["buffers_bytes"] == pytest.approx(row["formula_bytes"], rel=0.02, abs=400)
    assert "20 clients" in buffers.report(
        {"machine": harness.machine(), "clients": 20, "rows": rows}
    )


def test_roofline_counts_the_products_of_the_cost_table():
    model = models.build("adel_cnn2", input_shape=(28, 28, 1), num_classes=10)
    found = roofline.products(model, batch=4)
    flops = sum(count * one.flops for one, count in found.items())
    assert flops == pytest.approx(4 * float(cost_table(model).step_flops()), rel=0.02)
    results = roofline.measure("logistic", clients=2, steps=2, batch=4, repeats=1)
    needs = results["demand"]
    assert needs["parameter_bytes"] == 3 * 2 * 2 * 4 * 7850
    assert needs["input_bytes"] == 2 * 2 * 4 * 784
    text = roofline.report(results)
    assert all(word in text for word in ("compute", "products", "memory", "measured"))


def test_product_counts_batched_contractions():
    one = roofline.Product("dot_general", (5, 2, 3), (5, 3, 7), ((((2,), (1,)), ((0,), (0,))),))
    assert one.flops == 2 * 5 * 2 * 3 * 7


def test_products_are_found_whichever_way_a_convolution_is_run():
    model = models.build("leaf_cnn", input_shape=(28, 28, 1), num_classes=10)
    found = {}
    for how in ("direct", "patches"):
        with lowering(how):
            counts = roofline.products(model, batch=2)
        found[how] = sum(count * one.flops for one, count in counts.items())
        names = {one.name for one in counts}
        assert ("conv_general_dilated" in names) == (how == "direct")
    # Forward and input gradient of a convolution count the zeros of its padding, as products do.
    assert found["direct"] == pytest.approx(found["patches"], rel=0.02)


def test_precisions_train_the_same_runs():
    results = precision.measure("digits", clients=3, rounds=2, local_steps=2, seeds=[0, 1])
    rows = {(row["seed"], row["precision"]): row for row in results["rows"]}
    assert set(rows) == {(seed, name) for seed in (0, 1) for name in precision.PRECISIONS}
    for seed in (0, 1):
        one, other = (rows[seed, name]["loss"] for name in precision.PRECISIONS)
        assert one != other
        assert one == pytest.approx(other, rel=0.05)
    text = precision.report(results)
    assert "bfloat16 - float32 by seed" in text
    assert text.count("±") == 4


@pytest.mark.parametrize("channels", [(3, 5), (16, 8)])
def test_winograd_is_the_convolution(channels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 8, channels[0])), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, *channels)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(winograd.winograd(x, kernel), expected, rtol=1e-4, atol=1e-4)


def test_pool_of_samples_does_not_grow_with_the_cohort():
    small, large = (scale.make_data(n, pool=400) for n in (2, 20))
    assert small.x.nbytes == large.x.nbytes
    assert np.all((large.sizes >= 10) & (large.sizes <= 20))


def test_transfer_times_are_those_of_dtfl_s_first_table():
    """Within 1.5 % of the paper, case 2, at the numbers of rounds that it implies."""
    for tier in (2, 6):
        problem, speed = dtfl_timing.setting(110, profiles=dtfl_timing.CASES[2])
        algorithm = algorithms.build(
            "dtfl",
            problem,
            tiers=6,
            scheduler={"fixed_tier": tier},
            server_flops_per_s=speed,
            **dtfl_timing.OPTIONS,
        )
        ((plan, lasts, _),) = dtfl_timing.rounds_of(algorithm, problem, 1)
        slowest = np.argmax(plan.timing.total_s)
        assert lasts == plan.timing.total_s[slowest]
        moved_s = plan.timing.download_s[slowest] + plan.timing.upload_s[slowest]
        wanted_s = dtfl_timing.TABLE_1[2][1][tier - 1] / dtfl_timing.ROUNDS[2][tier - 1]
        assert moved_s == pytest.approx(wanted_s, rel=0.015)


def test_energy_of_plans_is_that_of_a_run_without_training():
    """FedAvg's devices work and wait as the clock says; the power is the same in both."""
    base = digits_problem()
    devices = dataclasses.replace(
        base.fleet, joules_per_flop=1 / base.fleet.flops_per_s, idle_watts=1.0
    )
    problem = Problem(base.model, base.data, devices)
    energy = fedel_energy.planned("fedavg", problem, 2)
    options = {"learning_rate": 0.1, "batch_size": 4, "local_steps": 1, "weighting": "uniform"}
    record = simulate(fedavg(problem, **options), problem, rounds=2).record
    assert energy.joules(1.0) == pytest.approx(record.summary["joules"])
    assert energy.working_j == pytest.approx(sum(row["compute_s"] for row in record.clients))
    assert 0 < energy.joules(0.5) - energy.working_j < energy.waiting_j


def test_overlapping_rounds_are_measured_against_synchronous_ones(monkeypatch):
    few = {"sync": ("fedavg", {}), "buffered": ("fedbuff", {"buffer_size": 2})}
    monkeypatch.setattr(overlap, "contenders", lambda at_work, interval_s: few)
    results = overlap.measure(3, updates=6, repeats=1, model="logistic", steps=1)
    assert [row["label"] for row in results["rows"]] == list(few)
    assert all(row["update_s"]["median"] > 0 for row in results["rows"])
    assert "limit of the ratio 1.3" in overlap.report(results)


def test_accelerator_reports_every_precision_and_what_failed(monkeypatch):
    monkeypatch.setattr(accelerator, "make_work", functools.partial(tiny, accelerator.make_work))
    works = {"train": accelerator.Training("logistic", 2, 1, 2)}
    works["loop"] = accelerator.Rounds(users=3, samples=4, per_round=2, batch=2, rounds=2)
    results = accelerator.measure(works, ["float32", "bfloat16"], ["table", "nonsense"], repeats=1)
    rows = results["works"]["train"]["rows"]
    assert [row["label"] for row in rows if "failed" not in row] == [
        "float32, table",
        "bfloat16, table",
    ]
    assert 0 == rows[2]["apart"] < rows[3]["apart"] < 0.05
    assert [row["faults"] for row in results["works"]["loop"]["rows"]] == [0, 0]
    text = accelerator.report(results)
    assert "float32, nonsense: failed" in text
    assert results["date"] in text
    assert set(accelerator.ways()) == {"table", "tuned", "patches", "rows", "lax"}


def tiny(make_work, model, *size, **options):
    """The same work with a network that compiles fast."""
    return make_work("logistic", *size, **options)


def test_convolutions_are_timed_by_lowering(monkeypatch):
    case = micro_conv.Case("small", 4, (3, 3, 2, 3), False, 2)
    monkeypatch.setattr(micro_conv, "CASES", (case,))
    monkeypatch.setattr(micro_conv, "_REPEATS", 1)
    assert case.flops(5) == 3 * 2 * 5 * 2 * 2 * 3 * 3 * 2 * 3
    lines = list(micro_conv.report(2, 2, ["float32"], 16))
    named = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(named) == {"lowering", *get_args(Lowering)}
    for absent in ("implicit", "onednn"):
        assert named[absent].split()[1:] == ["-", "-"]
    assert sum("<- chosen" in line for line in lines) == 1


def test_rounds_run_in_batches_and_one_by_one(monkeypatch):
    problem = digits_problem(hidden=(8,))
    algorithm = fedavg(problem, learning_rate=0.1, batch_size=4)
    monkeypatch.setitem(rounds.WORKS, "tiny", lambda: (algorithm, problem, 4))
    found = rounds.measure("tiny", 1)
    assert found["programs"] == {"batches": 1, "batches of one": 1, "one by one": 1}
    assert all(np.all(np.asarray(taken) > 0) for taken in found["seconds"].values())
    assert "batches of one" in rounds.report({"works": [found], "machine": harness.machine()})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_widths_are_measured_over_their_flops(monkeypatch):
    monkeypatch.setattr(widths, "RATES", (1.0, 0.5))
    results = widths.measure("mlp", clients=2, samples=6, repeats=1, memory=False)
    rows = {(row["way"], row["rate"]): row for row in results["rows"]}
    assert set(rows) == {
        ("FedAvg", 1.0),
        *((way, 1.0) for way in ("first units", "rolled")),
        *((way, 0.5) for way in (*widths.WAYS, "small")),
    }
    half = rows["rolled", 0.5]
    # Inputs and classes stay: (784 x 100 + 100 x 100 + 100 x 62) / (784 x 200 + 200 x 200 + ...).
    assert half["flop_share"] == pytest.approx(0.45, abs=0.02)
    assert half["time"]["median"] == pytest.approx(
        half["time_over_fedavg"]["median"] / half["flop_share"]
    )
    assert rows["first units", 1.0]["products"] == 1.0
    assert all(row["programs"] == 1 for row in rows.values())
    text = widths.report(results)
    assert "CPU over FLOP share" in text
    assert widths.peak("mlp", 2, 6, None, "masked", 0.5) > 0


def test_products_know_the_bytes_that_they_read_and_write():
    one = roofline.Product("dot_general", (5, 2, 3), (5, 3, 7), ((((2,), (1,)), ((0,), (0,))),))
    assert one.bytes == 4 * (5 * 2 * 3 + 5 * 3 * 7 + 5 * 2 * 7)


def test_selections_are_measured_against_the_uniform_one():
    results = selection.measure(clients=200, cohort=5, repeats=1)
    names = [row["name"] for row in results["rows"] if "learning" not in row["name"]]
    assert set(names) == set(selection.select.SELECTIONS)
    assert results["rows"][0]["over_uniform"]["median"] == 1.0
    assert "5 of 200 clients" in selection.report(results)


def test_sensor_study_cuts_an_nnx_network_by_the_speed_of_devices(tmp_path, monkeypatch):
    # One program a method compiles faster and gives the same numbers.
    masked = functools.partial(sensors.fh.simulate, execution="masked")
    monkeypatch.setattr(sensors.fh, "simulate", masked)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 8, 32, 1)).astype(np.float32), np.arange(30, dtype=np.int32) % 3
    data = from_arrays(x[:24], y[:24], x[24:], y[24:], clients=partition.iid(3), num_classes=3)
    problem = sensors.make_problem(data)
    assert problem.cost.names == ("first", "second", "third", "head")
    found = sensors.study(problem, str(tmp_path), seeds=(0,), seconds=1e-6)
    assert [method.name for method in found.methods] == ["FedAvg", "FedPMT"]
    assert (tmp_path / "report.html").exists()
    tasks = RunRecord.load(tmp_path / "fedpmt" / "seed0").clients
    assert [row["first_block"] for row in tasks] == [3, 1, 0]


def test_the_study_of_oort_reaches_targets_and_says_what_is_active(tmp_path):
    slow = {"virtual_s": [0, 5, 9], "accuracy": [0.1, 0.4, 0.8]}
    assert [oort.reached_s(slow, target) for target in (0.4, 0.5, 0.9)] == [5, 9, np.inf]
    cells = [{"label": "a", "learning_rate": r, "accuracy": [r]} for r in (0.1, 0.3, 0.2)]
    assert oort.best_rates(dict(enumerate(cells))) == {"a": 0.3}
    labels = ("FedAvg", "FedAvg + Oort", "PyramidFL")
    size = {"seconds": 40.0, "seeds": (0,), "rates": (0.1,), "labels": labels}
    runs = oort.study("digits", str(tmp_path), **size)
    assert [line.split(": ")[1] for line in oort.checks(runs)] == ["yes"] * 4
    assert oort.times(runs, (0.05, 2.0)).count("not by 1 of 1") == 3
    assert oort.study("digits", str(tmp_path), **size) == runs  # from the files


def test_the_study_of_heterofl_says_who_trains_what(tmp_path):
    size = heterofl.Size(share=0.01, divide=32, epochs=1, users=10, data="digits", norm="group")
    labels = ("e alone", "a-e, two labels")
    runs = heterofl.study(str(tmp_path), size, seeds=(0,), labels=labels)
    narrow, drawn = (runs[label][0] for label in labels)
    assert (narrow["rounds"], drawn["rounds"]) == (2, 4)
    assert narrow["tasks"] == narrow["seen"] == [0, 0, 0, 0, 1]
    assert narrow["by_width"][:4] == [None] * 4
    assert heterofl.by_width(runs).splitlines()[2].split()[:6] == ["e", "alone", *["-"] * 4]
    assert sum(drawn["tasks"]) == pytest.approx(1)
    assert max(drawn["tasks"]) < 1
    # Among two classes of ten, half of the guesses are right.
    assert drawn["own_classes"] > drawn["accuracy"][-1]
    assert heterofl.study(str(tmp_path), size, seeds=(0,), labels=labels) == runs  # from the files


def test_the_tables_of_heterofl_by_hand():
    def run(label, tasks, seen, accuracy):
        same = {"rounds": 40, "own_classes": 0.9, "accuracy": accuracy}
        return {"label": label, "tasks": tasks, "seen": seen, **same}

    every = [0.2] * 5
    runs = {
        "a-e": [run("a-e", every, [0.9] * 5, [0.1, 0.8, 0.7]) for _ in range(2)],
        "e alone": [run("e alone", [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0.1, 0.5])],
    }
    assert heterofl.activity(runs).splitlines()[2].split() == ["a-e", *["0.20", "(0.90)"] * 5]
    assert heterofl.checks(runs) == [
        "a-e: every level trains: yes",
        "a-e: the outermost units train in 90 % of the rounds: yes",
    ]
    rows = heterofl.accuracies(runs).splitlines()[2:]
    assert rows[0].split()[:9] == ["a-e", "40", "2", "80.00", "±", "0.00", "70.00", "±", "0.00"]
    assert rows[1].split() == ["e", "alone", "40", "1", "50.00", "50.00", "90.00", "-"]


@pytest.fixture
def small_images(monkeypatch):
    """Noise in the place of CIFAR-10, for a network of four layers."""
    monkeypatch.setattr(fedel_table1, "CHANNELS", (4, 4, 8, 8))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((460, 16, 16, 3), np.float32)
    y = np.arange(460, dtype=np.int32) % 10
    return x[:400], y[:400], x[400:], y[400:]


def test_the_table_of_fedel_prices_what_each_method_leaves_out(small_images):
    problem = fedel_table1.setting(0, small_images)
    training = fedel_table1.TRAINING
    labels = ("FedAvg", "TimelyFL", "FIARSE", fedel_table1.IDEAL, "FedEL, small probe")
    plans = fedel_table1.plans_by_arm(problem, labels, rounds=4)
    faster = {label: plans["FedAvg"]["round_s"] / plan["round_s"] for label, plan in plans.items()}
    # The rest of a round of FedAvg are transfers, of which FIARSE makes half on slow devices.
    # Last batches of an epoch are smaller, so slow devices have at most 80 samples.
    fast_s = fedel_table1_plans.fast_step_s(problem, training)
    slowest_s = 2 * fast_s / (1 - fedel_table1.COMMUNICATION)
    assert 0.9 * slowest_s < plans["FedAvg"]["round_s"] <= slowest_s
    assert 1.0 < faster["FIARSE"] < 1 / (1 - fedel_table1.COMMUNICATION)
    assert 1.8 < faster[fedel_table1.IDEAL] <= 2.0
    assert 1.8 < faster["TimelyFL"] <= 2.0
    whole, ideal = (np.asarray(plans[label]["work"]) for label in ("FIARSE", fedel_table1.IDEAL))
    np.testing.assert_allclose(whole, plans["FedAvg"]["work"])
    np.testing.assert_allclose(ideal / whole, [1.0, 0.5])
    assert plans["TimelyFL"]["blocks"][1] == [0.0, 0.0, 0.0, 1.0]
    assert np.all(np.asarray(plans["FedEL, small probe"]["work"]) <= [1.0, 0.5])
    text = fedel_table1_plans.activity(plans)
    assert text.count("slow") == len(plans)
    # Conv 4 to 8 and 8 to 8 channels at a quarter of the pixels of the first two.
    assert fedel_table1_plans.pyramid(problem).count("[10, 14]") == 1


def test_the_table_of_fedel_is_made_from_its_cells(small_images, tmp_path):
    size = {"rounds": 2, "seeds": (0,), "rates": (0.01, 0.02), "images": small_images}
    size["labels"] = ("FedAvg", "FedEL", "FIARSE")
    runs = fedel_table1.study(str(tmp_path), **size)
    assert len(list(tmp_path.iterdir())) == 3 * (2 + 1)
    assert fedel_table1.study(str(tmp_path), **size) == runs  # from the files
    round_s = runs["FedAvg"][0]["virtual_s"][-1] / 4
    [ideal] = fedel_table1_report.repriced(runs["FIARSE"], "ideal", round_s)
    assert ideal["accuracy"] == runs["FIARSE"][0]["accuracy"]
    assert ideal["virtual_s"] == [0.0, round_s, 2 * round_s]
    lines = fedel_table1_report.table({**runs, "ideal": [ideal]}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["FedAvg", "FedEL", "FIARSE", "ideal"]
    assert " 2.00 " in lines[-1]
    # Every device is charged for what it does in each of two rounds.
    assert np.all(np.asarray(runs["FedEL"][0]["kernels"]) <= 2 * 5)
    assert "FedEL, slow" in fedel_table1_report.signs(runs)


def test_step_sizes_at_which_the_importances_are_negative_are_not_chosen():
    def tuned(rate, accuracy, positive):
        return {"rate": rate, "accuracy": [accuracy], "positive": [positive]}

    cells = [tuned(0.01, 0.3, 0.9), tuned(0.03, 0.4, 0.8), tuned(0.1, 0.5, 0.6)]
    assert fedel_table1_report.best_rate(cells) == 0.03
    assert fedel_table1_report.best_rate(cells[2:]) == 0.1
    one = {"virtual_s": [0, 5, 9], "accuracy": [0.1, 0.4, 0.8], "fast_step_s": 2.0}
    assert [fedel_table1_report.reached(one, target) for target in (40, 50, 90)] == [
        2.5,
        4.5,
        np.inf,
    ]


def test_the_table_of_compressions_by_hand():
    def run(at_s, accuracy, bytes_up):
        return {
            "learning_rate": 0.1,
            "accuracy": accuracy,
            "virtual_s": at_s,
            "step": [0, 10, 20],
            "task_bytes_up": bytes_up,
            "upload_share": 0.5,
        }

    runs = {
        "FedAvg": [
            run([0.0, 80.0, 160.0], [0.0, 0.5, 0.7], 4000.0),
            run([0.0, 100.0, 200.0], [0.0, 0.7, 0.8], 4000.0),
        ],
        "sign": [run([0.0, 10.0, 20.0], [0.0, 0.4, 0.6], 500.0)] * 2,
    }
    head, _, plain, signs = compression.table(runs, targets=(0.5, 0.7))
    assert head.split(" | ")[4:8] == ["s to 50 %", "MB up to 50 %", "s to 70 %", "MB up to 70 %"]
    # 10 clients, 10 rounds of 4 kB to 50 %; to 70 % it takes 160 s in one run and 100 in the other.
    assert plain.split(" | ")[2:8] == ["4.0", "50", "90 ± 14", "0.4 ± 0.0", "130 ± 42", "0.6 ± 0.3"]
    assert signs.split(" | ")[2:8] == ["0.5", "50", "20 ± 0", "0.1 ± 0.0", "", ""]
    assert signs.endswith(" | 33.3 ± 0.0 | 4.5, - |")


def test_the_privacy_study_takes_the_least_noise_for_an_epsilon():
    noise = privacy.multiplier(3.0, 30, 207, 207)
    spent = [fh.privacy.epsilon(z, 30, 207**-1.1) for z in (noise, noise / 1.002)]
    assert spent[0] <= 3.0 < spent[1]
    assert len(privacy.candidates(None)) == len(privacy.candidates(3.0))
    cell = {"method": "fedavg", "epsilon": 2.999, "noise": noise, "clip": 1.0, "step": 0.5}
    text = privacy.table([{**cell, "target": 3.0, "accuracy": [0.5, 0.6]}])
    assert text.splitlines()[2] == "| fedavg | 3.00 | 10.36 | 1 | 0.5 | 55.0 ± 7.1 | 50.0, 60.0 |"
