"""The studies of sub-models at equal capacity: their own rules by hand, and tiny runs."""

import jax
import numpy as np
import pytest
from problems import digits_problem

from benchmarks.reproduce import adel_heterofl, adel_heterofl_report, fedpmt
from fedjax_het import algorithms
from fedjax_het.data import from_arrays
from fedjax_het.data.partition import iid
from fedjax_het.simulation.simulate import simulate

ADEL = adel_heterofl.Setting(4.0, 8, (1.0, 2.4), 10.0, (8,))


def test_zero_padding_shrinks_what_half_of_the_clients_hold_by_half():
    problem = digits_problem()
    options = {"learning_rate": 0.1, "batch_size": 4, "local_steps": 1, "masked_loss": False}
    plain = algorithms.build(
        "heterofl", problem, rates=(1.0, 0.5), levels=[0, 1] * 4, scaler=False, **options
    )
    mean, padded = (
        simulate(method, problem, rounds=1, execution="masked").variables.params["blocks"]
        for method in (plain, adel_heterofl.zero_padded(plain))
    )
    kernels = (
        [jax.tree.leaves(block)[1] for block in mean],
        [jax.tree.leaves(block)[1] for block in padded],
    )
    for (whole, shrunk), rows, columns in zip(
        zip(*kernels, strict=True), (None, 6, 4), (6, 4, None), strict=True
    ):
        share = np.full(whole.shape, 0.5, np.float32)
        share[:rows, :columns] = 1.0
        np.testing.assert_allclose(shrunk, share * whole, rtol=1e-6)


def test_accuracy_is_read_at_the_end_of_the_time_and_after_all_rounds(monkeypatch):
    monkeypatch.setitem(adel_heterofl.SETTINGS, "tight", ADEL)
    seen = {"step": [0, 1, 3], "virtual_s": [0.0, 4.0, 9.0], "accuracy": [0.1, 0.5, 0.9]}
    one = {
        "label": "a",
        "setting": "tight",
        "learning_rate": 0.1,
        "batch_size": 8,
        "curves": [seen],
        "dropped": [0.0],
        "merging": [{"miss_observed": 0.25, "update_weight": 1.5}],
    }
    assert adel_heterofl_report.at_time(seen, 4.0) == (0.5, 1)
    row = adel_heterofl_report.table([one], 4.0, 3).splitlines()[2]
    assert row == "| a | 0.1, batch 8 | 50.0 ± 0.0 | 50.0 | 1 | 90.0 ± 0.0 | 0 % | 0.25 | 1.50 |"
    worse = {**one, "learning_rate": 0.2, "curves": [{**seen, "accuracy": [0.1, 0.4, 1.0]}]}
    assert adel_heterofl.best({"x": one, "y": worse}) == {"a": (0.1, 8)}


@pytest.mark.slow
def test_the_comparison_of_adel_with_heterofl_runs_on_one_clock(monkeypatch, tmp_path):
    monkeypatch.setattr(adel_heterofl, "ROUNDS", 3)
    monkeypatch.setitem(adel_heterofl.SETTINGS, "tight", ADEL)
    monkeypatch.setattr(adel_heterofl, "problem", lambda alpha: digits_problem())
    labels = ("SALF", "HeteroFL", adel_heterofl.PADDED)
    size = {"seeds": (0,), "rates": (0.1,), "labels": labels}
    runs = adel_heterofl.study("tight", str(tmp_path), **size)
    assert [one["label"] for one in runs] == list(labels)
    assert all(one["curves"][0]["step"][-1] == 3 for one in runs[1:])
    assert adel_heterofl.study("tight", str(tmp_path), **size) == runs  # from the files
    assert adel_heterofl_report.figure(runs, 4.0).axes


def test_every_method_of_the_fedpmt_study_pays_what_its_groups_afford(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 14, 14, 1)).astype(np.float32), np.arange(600) % 10
    images = from_arrays(x, y, x[:20], y[:20], clients=iid(fedpmt.CLIENTS), num_classes=10)
    monkeypatch.setattr(fedpmt, "federated", lambda name, split: images)
    lines = fedpmt.capacities("images", "iid", tuple(fedpmt.ARMS), rounds=2).splitlines()[2:]
    found = [line.rsplit(maxsplit=3) for line in lines]
    work = {label.strip(): [float(share) for share in shares] for label, *shares in found}
    assert set(work) == set(fedpmt.ARMS)
    everyone = {"FedAvg", "FedDyn", "drop-stragglers", "DepthFL, everyone whole"}
    for label, shares in work.items():
        # The heads of the exits come on top of the complete network.
        assert shares[2] == pytest.approx(1.06 if "DepthFL" in label else 1.0, abs=0.002)
        afforded = [shares[2]] * 2 if label in everyone else fedpmt.SPEEDS[:2]
        assert shares[:2] == pytest.approx(afforded, rel=0.02), label


def test_a_dense_clock_reads_the_same_run_earlier():
    def run(label, **metrics):
        seen = {"step": [0, 5, 10], "virtual_s": [0.0, 5.0, 10.0], **metrics}
        return {"label": label, "learning_rate": 0.1, "megabytes_up": 2.0, "curves": [seen] * 2}

    runs = {
        "FedPMT": run("FedPMT", accuracy=[0.1, 0.5, 0.7]),
        "DepthFL": run("DepthFL", accuracy=[0.1, 0.2, 0.3], **{"accuracy[ensemble]": [0, 0, 0.4]}),
        "FIARSE": run("FIARSE", accuracy=[0.1, 0.6, 0.8]),
    }
    lines = fedpmt.table(runs).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| FedPMT",
        "| DepthFL",
        "| DepthFL, mean of exits",
        "| FIARSE",
        "| FIARSE, dense",
    ]
    # At 1 / 0.456 s a round, four of ten rounds fit; the last evaluation before is at the start.
    assert lines[4].split(" | ")[2:5] == ["80.0 ± 0.0", "10.0 ± 0.0", "2.19"]


@pytest.mark.slow
def test_the_fedpmt_study_is_read_back_from_its_files(tmp_path):
    size = {"rounds": 2, "seeds": (0,), "rates": (0.1, 0.2), "labels": ("FedPMT", "DepthFL")}
    runs = fedpmt.study("digits", "iid", str(tmp_path), **size)
    assert set(runs) == {"FedPMT", "DepthFL"}
    assert "accuracy[ensemble]" in runs["DepthFL"]["curves"][0]
    assert fedpmt.study("digits", "iid", str(tmp_path), **size) == runs
    assert fedpmt.figure({"iid": runs}).axes
