"""The core of the apps, without a transport: the model is that of the simulation, or a refusal."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from methods import DEFAULT, SETTINGS

import fedjax_het as fh
from fedjax_het.algorithms import ALGORITHMS, build
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.export.device import Device, own_samples, require_client, samples_of
from fedjax_het.export.message import Message, UnusableError, tree_of, tree_parts
from fedjax_het.export.remote import Remote
from fedjax_het.export.supported import fingerprint
from fedjax_het.models.saving import named
from fedjax_het.simulation.simulate import simulate
from fedjax_het.simulation.start import run_keys

# Words of the reason for which a method is not exported; every other method is.
WAITING, KEPT = "merges while other clients are at work", "keeps values of single clients"
REFUSED = {
    "depthfl": KEPT,
    "dtfl": "send activations and its part of the network",
    "fedasync": WAITING,
    "fedat": WAITING,
    "fedbuff": WAITING,
    "feddyn": KEPT,
    "fedfix": WAITING,
    "fedgkt": "send features and logits",
    "nested_mask_sync": KEPT,
    "prfl": WAITING,
    "prfl_fedasyn": WAITING,
    "prfl_fedfix": WAITING,
    "scaffold": KEPT,
    "splitfed": "send activations",
    "sub_fedavg": KEPT,
}
# Variants of a method of the quick tests.
VARIANTS = {"adel_drop", "adel_wait", "drop_stragglers", "fedadam", "fednova", "fedopt"}


def case(name):
    make_problem, options = SETTINGS.get(name, DEFAULT)
    problem = make_problem()
    return problem, functools.partial(build, name, **options)


def blind(problem):
    """The problem without the inputs of the clients, as the server of a deployment has it."""
    x = jax.tree.map(np.zeros_like, problem.data.x)
    return dataclasses.replace(problem, data=dataclasses.replace(problem.data, x=x))


class Devices:
    """The devices of a problem in this process, with a note of what they were sent and answered.

    Args:
      algorithm, problem: method and problem of the devices.
      silent: function from a client and its message to whether it does not answer.
    """

    def __init__(self, algorithm, problem, silent=lambda client, message: False):
        self._device, self._silent, self.log = Device(algorithm, problem), silent, []
        self._data = functools.cache(functools.partial(samples_of, problem))

    def __call__(self, kind, messages):
        answer = {"train": self._device.train, "query": self._device.answer}[kind]
        received = {}
        for client, message in messages.items():
            if not self._silent(client, message):
                received[client] = answer(message, client, self._data(client))
        self.log.append((kind, messages, received))
        return received


def deployed(make, problem, *, rounds=2, **options):
    """A run whose server has no inputs of the clients, and the exchange of its messages."""
    devices = Devices(make(problem), problem, **options)
    own = blind(problem)
    algorithm = make(own)
    return simulate(algorithm, own, rounds=rounds, engine=Remote(algorithm, own, devices)), devices


class Runs(NamedTuple):
    problem: Any
    simulated: Any
    remote: Any
    devices: Any


@functools.cache
def runs(name):
    """The same two rounds by the simulation and by devices."""
    problem, make = case(name)
    remote, devices = deployed(make, problem)
    return Runs(problem, simulate(make(problem), problem, rounds=2), remote, devices)


def distance(one, other):
    pairs = zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_run_unchanged_is_refused_with_the_reason(name):
    problem, make = case(name)
    with pytest.raises(InputError, match=f"{name}.* on real devices: .*{REFUSED[name]}.*; use"):
        fh.export.flower(make(problem), problem)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ())
        for name in sorted(set(ALGORITHMS) - set(REFUSED))
    ],
)
def test_devices_come_to_the_model_of_the_simulation(name):
    run = runs(name)
    simulated, remote, devices = run.simulated, run.remote, run.devices
    assert distance(simulated, remote) < 1e-5
    for ours, theirs in zip(remote.record.metrics, simulated.record.metrics, strict=True):
        for column in ("step", "virtual_s", "bytes_up", "bytes_down", "merged"):
            assert ours.get(column) == theirs.get(column)
    assert remote.faults == []
    sent = [messages for kind, messages, _ in devices.log if kind == "train"]
    assert len(sent) == 2
    assert all(sent)


def payload(devices, way, kind):
    """Bytes of the arrays of one kind of message, "down" or "up", in every round."""
    part = 1 if way == "down" else 2
    chosen = [entry[part] for entry in devices.log if entry[0] == kind]
    return [sum(message.payload_bytes for message in several.values()) for several in chosen]


def told(run, name):
    return [row["info"][name] for row in run.record.metrics[1:]]


def charged(run, way):
    return [row[f"bytes_{way}"] for row in run.record.metrics[1:]]


@pytest.mark.parametrize("name", ["fedavg", "fedpmt"])
def test_what_is_sent_is_what_the_cost_model_charges(name):
    _, _, run, devices = runs(name)
    assert payload(devices, "up", "train") == told(run, "payload_bytes_up") == charged(run, "up")
    # A key of 8 bytes, and of FedPMT the depth, in 4 bytes.
    row = 8 + 4 * (name == "fedpmt")
    assert told(run, "payload_bytes_down") == [n + 8 * row for n in charged(run, "down")]


def test_fedel_sends_the_chosen_tensors_and_a_number_for_each_when_it_is_asked():
    problem, _, run, devices = runs("fedel")
    assert payload(devices, "up", "train") == charged(run, "up")
    clients, tensors = problem.num_clients, 6
    assert payload(devices, "up", "query") == [4 * tensors * clients] * 2
    assert told(run, "payload_bytes_up") == [n + 4 * tensors * clients for n in charged(run, "up")]
    # The whole model with the question, and the blocks up to the exit with the task.
    whole = problem.cost.download_bytes()
    assert all(n >= whole * clients for n in payload(devices, "down", "query"))
    windows = [len(m.arrays) for _, messages, _ in devices.log[1::2] for m in messages.values()]
    assert min(windows) < max(windows)
    assert payload(devices, "down", "train")[0] < whole * clients


def test_heterofl_moves_sub_networks_only():
    problem, _, run, _ = runs("heterofl")
    key, classes = 8, problem.data.num_classes
    extra = problem.num_clients * (key + classes)
    assert told(run, "payload_bytes_down") == [n + extra for n in charged(run, "down")]
    # The rows of absent classes stay, which the cost model charges.
    assert all(a < b for a, b in zip(told(run, "payload_bytes_up"), charged(run, "up")))


def test_a_client_that_does_not_answer_is_left_out_of_the_merge():
    """As one whose update is not finite: the rest are merged as if it had not taken part."""
    problem, make = case("fedavg")
    run, devices = deployed(make, problem, rounds=1, silent=lambda client, message: client == 3)
    assert told(run, "silent_clients") == [1]
    assert {row["client"]: row["status"] for row in run.record.clients}[3] == "nonfinite"
    received = devices.log[0][2]
    name, sizes = "blocks.1.Dense_0.bias", problem.data.sizes
    total = sum(sizes[client] * m.arrays[f"delta.{name}"] for client, m in received.items())
    start = named(problem.model.init(run_keys(0)["model"]))[name]
    expected = start + total / (sum(sizes) - sizes[3])
    np.testing.assert_allclose(named(run.variables)[name], expected, rtol=1e-5, atol=1e-6)


def test_a_damaged_answer_counts_as_none_and_nobody_answering_ends_the_run():
    problem, make = case("fedavg")
    algorithm = make(problem)
    devices = Devices(algorithm, problem)

    def damaging(kind, messages):
        received = devices(kind, messages)
        arrays = dict(received[0].arrays)
        name = next(iter(arrays))
        received[0] = received[0]._replace(arrays={**arrays, name: arrays[name][:-1]})
        del received[1]
        received[2] = received[2]._replace(words={})
        return received

    run = simulate(algorithm, problem, rounds=1, engine=Remote(algorithm, problem, damaging))
    assert told(run, "silent_clients") == [3]
    with pytest.raises(InputError, match=r"no client of 8 answered .*client 0: no answer"):
        simulate(
            algorithm, problem, rounds=1, engine=Remote(algorithm, problem, lambda kind, sent: {})
        )


def test_a_client_that_does_not_measure_is_counted_and_its_importance_is_zero():
    problem, make = case("fedel")
    silent = lambda client, message: client == 0 and message.words.get("ask") == "measure"
    run, _ = deployed(make, problem, rounds=1, silent=silent)
    assert told(run, "silent_clients") == [1]
    assert {row["status"] for row in run.record.clients} == {"merged"}


def test_a_stopped_server_continues_from_its_checkpoint(tmp_path):
    problem, make = case("fedpmt")
    algorithm = make(problem)
    engine = Remote(algorithm, problem, Devices(algorithm, problem))
    whole = simulate(algorithm, problem, rounds=3, engine=engine)
    options = {"workdir": tmp_path, "checkpoint_every": 1, "engine": engine}
    simulate(algorithm, problem, rounds=2, **options)
    again = simulate(algorithm, problem, rounds=3, **options)
    assert distance(whole, again) == 0
    loaded = fh.load_model(tmp_path, problem.model)
    assert distance(loaded, whole) == 0


def test_samples_of_a_device_of_its_own_must_be_those_that_the_server_plans_with():
    problem, make = case("fedavg")
    device, mine = Device(make(problem), problem), problem.data.client_samples(2)
    x, y = problem.data.x[mine], problem.data.y[mine]
    asked = Message({}, {"ask": "who"})
    said = device.answer(asked, 2, own_samples(problem, 2, x, y)).words
    assert said == {
        "client": 2,
        "samples": len(mine),
        "method": fingerprint(make(problem), problem),
    }
    with pytest.raises(InputError, match=r"client_data of client 2 with 3 inputs.*the 8 samples"):
        own_samples(problem, 2, x[:3], y[:3])
    with pytest.raises(InputError, match=r"client_data of client 2 with samples.*must be like"):
        own_samples(problem, 2, x[:, :5], y)
    with pytest.raises(InputError, match=r"partition-id = 8: must be a client, 0 to 7"):
        require_client(problem, 8)


def test_other_options_give_another_fingerprint():
    problem, make = case("fedavg")
    other = build("fedavg", problem, learning_rate=0.2, batch_size=4)
    assert fingerprint(make(problem), problem) == fingerprint(make(blind(problem)), problem)
    assert fingerprint(make(problem), problem) != fingerprint(other, problem)


def test_trees_of_any_kind_of_node_travel():
    tree = {"b": (np.int32(3), [np.zeros(2, np.float32), None]), "a": np.arange(3, dtype=np.int64)}
    arrays, words = tree_parts("row", tree)
    back = tree_of("row", Message(arrays, words))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert {leaf.dtype.itemsize for leaf in arrays.values()} == {4}
    named_tuple = Variables({"w": np.ones(2, np.float32)}, {})
    arrays, words = tree_parts("row", named_tuple)
    assert tree_of("row", Message(arrays, words))._fields == ("params", "stats")
    with pytest.raises(UnusableError, match="os:system is no named tuple"):
        tree_of("row", Message({}, {"row": '{"os:system": {}}'}))
    with pytest.raises(InputError, match="row of type set: cannot be sent"):
        tree_parts("row", {"a": {1, 2}})


def test_what_has_no_meaning_on_devices_is_refused():
    problem, make = case("fedavg")
    algorithm = make(problem)
    for changed, words in (
        (fh.compose(algorithm, fh.compress.top_k(0.1)), "only after they have been sent"),
        (
            fh.compose(algorithm, fh.select.power_of_choice(d=8, fresh=True)),
            "asks clients before the cohort",
        ),
    ):
        with pytest.raises(InputError, match=words):
            fh.export.flower(changed, problem)
    with pytest.raises(InputError, match="run option of flower 'devices': must be one of"):
        fh.export.flower(algorithm, problem, devices=2)
    with pytest.raises(InputError, match="timeout_s = 0: must be a positive"):
        fh.export.flower(algorithm, problem, timeout_s=0)
    flaky = dataclasses.replace(
        problem, fleet=dataclasses.replace(problem.fleet, failure_rate=np.full(8, 0.1))
    )
    with pytest.raises(InputError, match="which real devices decide themselves"):
        fh.export.flower(make(flaky), flaky)


@pytest.mark.skipif(importlib.util.find_spec("flwr") is not None, reason="Flower is installed")
def test_the_missing_library_is_named_with_its_remedy():
    problem, make = case("fedavg")
    with pytest.raises(InputError, match=r'pip install "fedjax-het\[flower\]"'):
        fh.export.flower(make(problem), problem)


def test_the_page_shows_the_app_and_a_server_without_samples():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "flower.md").read_text()
    task, apps, server = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for shown, file in ((task, "task"), (apps, "apps")):
        text = (docs / "flower_app" / "digits_app" / f"{file}.py").read_text()
        assert set(shown.splitlines()) <= set(text.splitlines())
    problem, make = case("fedavg")
    names = {"fh": fh, "np": np, "n": problem.num_clients, "sizes": problem.data.sizes}
    names |= {"test_x": problem.data.test_x, "test_y": problem.data.test_y}
    exec(server, names)
    own = dataclasses.replace(problem, data=names["data"])
    assert fingerprint(make(own), own) == fingerprint(make(problem), problem)
    np.testing.assert_array_equal(own.data.sizes, problem.data.sizes)
