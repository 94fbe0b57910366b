"""A comparison says so when its methods differ in optimiser or schedule."""

from fedjax_het.report.optimisers import training_notes, training_of
from fedjax_het.report.results import summarise
from fedjax_het.report.tables import table_notes

SGD = {"client_optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.05}
AMSGRAD = {"client_optimizer": "amsgrad", "weight_decay": 5e-4, "learning_rate": 0.001}


def test_options_are_found_in_either_place():
    own = {"name": "dtfl", "clients_per_round": 3, **AMSGRAD}
    assert training_of({"algorithm": own}) == AMSGRAD
    assert training_of({"algorithm": {"name": "x"}, "identity": {"options": own}}) == AMSGRAD
    assert training_of({"algorithm": own, "identity": {"options": None}}) == AMSGRAD
    for config in ({}, {"algorithm": "fedavg"}, {"algorithm": {"learning_rate": 0.1}}):
        assert training_of(config) == {}


def test_different_optimisers_are_named():
    momentum = {**SGD, "momentum": 0.9, "clip_norm": 1.0}
    notes = training_notes({"FedAvg": SGD, "DTFL": AMSGRAD, "FedPMT": SGD, "M": momentum})
    assert notes == [
        "Optimisers differ: FedAvg, FedPMT sgd, learning rate 0.05; DTFL amsgrad, weight decay "
        "0.0005, learning rate 0.001; M sgd, momentum 0.9, gradient norm at most 1, learning rate "
        "0.05."
    ]


def test_options_of_an_optimiser_and_transformations_are_told_apart():
    own = {**SGD, "client_optimizer": {"name": "adam", "b1": 0.95, "nesterov": False}}
    ready = {**SGD, "client_optimizer": "optax transformation 12ab", "learning_rate": None}
    assert training_notes({"A": own, "B": ready}) == [
        "Optimisers differ: A adam, b1 0.95, learning rate 0.05; B optax transformation 12ab."
    ]


def test_learning_rates_alone_are_tuning():
    assert training_notes({"A": SGD, "B": {**SGD, "learning_rate": 0.1}, "C": {}}) == []


def test_different_schedules_are_named_with_what_they_use():
    constant = {**SGD, "schedule": "constant", "decay_rounds": 100.0}
    assert training_notes({"A": SGD, "B": constant}) == []
    inverse = {**constant, "schedule": "inverse", "decay_factor": 0.1, "warmup_rounds": 5}
    assert training_notes({"A": SGD, "B": constant, "C": inverse}) == [
        "Learning-rate schedules differ: A, B constant; C inverse, decay rounds 100, "
        "warm-up rounds 5."
    ]
    assert training_notes({"A": constant, "B": {**constant, "decay_rounds": 7.0}}) == []
    assert training_notes({"A": {**inverse, "schedule": "step"}, "B": SGD}) == [
        "Learning-rate schedules differ: A step, decay rounds 100, decay factor 0.1, warm-up "
        "rounds 5; B constant."
    ]


def test_the_notes_of_a_comparison_have_it(make_run):
    runs = {
        "FedAvg": [make_run(steps=2, training=SGD)],
        "DTFL": [make_run(steps=2, training=AMSGRAD)],
    }
    assert any(note.startswith("Optimisers differ") for note in table_notes(summarise(runs, [])))
    bare = {name: [make_run(steps=2)] for name in runs}
    assert not any("differ:" in note for note in table_notes(summarise(bare, [])))
