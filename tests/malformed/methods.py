"""Methods, comparisons and profiles."""

from pathlib import Path
from typing import Any

import numpy as np
from malformed.case import BASE, Call, Case, changed, method, problem

from fedjax_het import (
    Algorithm,
    Problem,
    Simulation,
    algorithms,
    clock,
    compose,
    experiment,
    models,
    server,
)
from fedjax_het.algorithms.dtfl.profiles import Profile
from fedjax_het.fleet import Fleet
from fedjax_het.fleet import build as build_fleet
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.fleet.profile import with_measured
from fedjax_het.report import compare as compare_records

# ---- methods -------------------------------------------------------------------------------------


def cramped(here: Path) -> None:
    small = Fleet(np.full(4, 1e9), memory_bytes=[1e9, 1e9, 10.0, 1e9])
    algorithms.fedavg(Problem(problem().model, problem().data, small), learning_rate=0.1)


def with_heads(name: str, **options: Any) -> Call:
    """Makes an algorithm on the base problem with exit heads."""

    def call(here: Path) -> Algorithm:
        base = problem()
        headed = Problem(models.with_exits(base.model), base.data, base.fleet)
        return algorithms.build(name, headed, **{"learning_rate": 0.1, **options})

    return call


def tiny_memory(here: Path) -> None:
    base = problem()
    small = Fleet(np.full(4, 1e9), memory_bytes=[1e9, 10.0, 1e9, 1e9])
    headed = Problem(models.with_exits(base.model), base.data, small)
    algorithms.dtfl(headed, learning_rate=0.1)


def redrawn(name: str, **options: Any) -> Call:
    """Makes an algorithm on a fleet whose devices are re-drawn."""

    def call(here: Path) -> None:
        base = problem()
        devices = build_fleet("dtfl", 4, redraw_every=5)
        moving = Problem(models.with_exits(base.model), base.data, devices)
        algorithms.build(name, moving, learning_rate=0.1, **options)

    return call


def pruned(**options: Any) -> Call:
    """Makes PR-FL without recovery, which would need validation data."""
    return method("prfl", **{"recovery": None, **options})


SPLIT: list[Case] = [
    (with_heads("prfl", recovery=None), "1 exit heads | prfl prunes the network | heads out"),
    (redrawn("fedel"), "redraw_every on the fleet of fedel | devices of round 0 | leave it out"),
    (redrawn("adel_wait"), "redraw_every | devices of round 0 | leave it out"),
    (method("dtfl"), "without exits | auxiliary head | exits = True"),
    (method("depthfl"), "no exit heads | sub-models by depth | exits = True"),
    (
        with_heads("depthfl", exits=(0,)),
        "exits = (0,) | ascending order that end with 1 | leave it",
    ),
    (with_heads("depthfl", levels=(1, 2)), "levels = (1, 2) | each of the 4 clients | even"),
    (with_heads("depthfl", levels="odd"), "levels 'odd' | must be one of even | choose"),
    (
        with_heads("depthfl", levels="even", capacity=[1.0] * 4),
        "levels and capacity | both decide | leave one out",
    ),
    (with_heads("depthfl", alpha=-1), "alpha = -1 | at least 0 | no FedDyn"),
    (with_heads("depthfl", ramp_rounds=0), "ramp_rounds = 0 | at least 1 | use 300"),
    (with_heads("depthfl", memory_bytes=10), "memory_bytes = 10 | 4 clients | fewer clients"),
    (method("scalefl"), "no exit heads | by depth | exits = True"),
    (
        with_heads("scalefl", submodels=((0.5, 3),)),
        "submodels = [(0.5, 3)] | an exit in 1..2 | leave it out",
    ),
    (
        with_heads("scalefl", submodels=((1.0, 1), (0.5, 2))),
        "submodels = [(1.0, 1), (0.5, 2)] | shrink in neither | smallest first",
    ),
    (with_heads("scalefl", gamma=-1), "gamma = -1 | at least 0 | no distillation"),
    (with_heads("scalefl", temperature=0), "temperature = 0 | must be positive | use 3"),
    (with_heads("scalefl", levels=(1, 2)), "levels = (1, 2) | of the 4 clients | even"),
    (method("fedgkt"), "0 exit heads | auxiliary head | exits = True"),
    (with_heads("dtfl", tiers=0), "tiers = 0 | between 1 and the 1 boundaries | leave it out"),
    (with_heads("dtfl", tiers=2), "tiers = 2 | between 1 and the 1 boundaries | leave it out"),
    (with_heads("dtfl", scheduler={"ema": 0}), "scheduler.ema = 0 | (0, 1] | 2/3"),
    (
        with_heads("dtfl", scheduler={"profile": "guess"}),
        "'guess' | must be one of | e.g. profile = 'analytic'",
    ),
    (
        with_heads("dtfl", scheduler={"tiers": 2}),
        "its option 'tiers' | must be one of | choose",
    ),
    (with_heads("dtfl", privacy=0.5), "'privacy' = 0.5 | must be a Privacy | privacy = Privacy("),
    (
        with_heads("dtfl", scheduler={"profile": Profile(np.zeros(1), np.ones(1))}),
        "profile of shapes (1,) and (1,) | a positive client time | dtfl.profiles",
    ),
    (
        with_heads("dtfl", scheduler={"initial_tier": 0}),
        "initial_tier = 0 | a tier from 1 to 1 | leaves most of the network",
    ),
    (
        with_heads("dtfl", scheduler={"fixed_tier": (1, 1)}),
        "fixed_tier = (1, 1) | each of the 4 clients | tier 1",
    ),
    (
        with_heads("dtfl", server_flops_per_s=0),
        "server_flops_per_s = 0 | must be positive | infinity",
    ),
    (with_heads("dtfl", privacy={"dcor": 1.5}), "privacy.dcor = 1.5 | [0, 1] | 0.25"),
    (with_heads("dtfl", privacy={"dcor": (0.5,)}), "dcor = (0.5,) | each of the 4 clients | 0.25"),
    (with_heads("dtfl", privacy={"shuffle": "space"}), "'space' | needs maps | 'channel'"),
    (with_heads("dtfl", privacy={"shuffle": "rows"}), "'rows' | must be one of channel | choose"),
    (with_heads("dtfl", privacy={"patch": 0}), "patch = 0 | at least 1 | use 4"),
    (with_heads("dtfl", plateau=0), "plateau = 0 | at least 1 round | use 10"),
    (
        with_heads("dtfl", momentum=0.9, client_optimizer="adam"),
        "momentum = 0.9 with client_optimizer = 'adam' | option of SGD | leave it out",
    ),
    (method("fedavg", weight_decay=-1), "weight_decay = -1 | at least 0 | 5e-4"),
    (
        method("fedavg", client_optimizer="admw"),
        "client_optimizer 'admw' | must be one of | did you mean 'adamw'?",
    ),
    (method("splitfed", client_blocks=2), "client_blocks = 2 | between 1 and 1 | use 2"),
    (with_heads("fedgkt", client_blocks=0), "client_blocks = 0 | between 1 and 1 | use 2"),
    (
        with_heads("fedgkt", client_blocks=1, temperature=0),
        "temperature = 0 | must be positive | use 1",
    ),
    (
        with_heads("fedgkt", client_blocks=1, server_epochs=(0,)),
        "server_epochs = 0 | at least 1 | leave it out",
    ),
    (tiny_memory, "clients [1] (of 1) | client half of a tier | smaller batches"),
]

METHODS: list[Case] = [
    (method("fedavg", learning_rate=-1), "learning_rate = -1 | positive and finite | 0.05"),
    (
        method("fedavg", learning_rate=float("nan")),
        "'learning_rate' = nan | must be a finite number | correct learning_rate",
    ),
    (
        method("fedavg", learning_rate="slow"),
        "'learning_rate' = 'slow' | must be a number | correct",
    ),
    (method("fedavg", momentum=1), "momentum = 1 | [0, 1) | plain SGD"),
    (method("fedavg", batch_size=0), "batch_size = 0 | at least 1 | leave it out"),
    (
        method("fedavg", batch_size=2.5),
        "'batch_size' = 2.5 | must be a whole number | batch_size = 20",
    ),
    (method("fedavg", local_steps=0), "local_steps = 0 | at least 1 | leave it out"),
    (method("fedavg", weighting="size"), "'size' | must be one of samples, uniform | choose"),
    (method("fedprox", mu=-1), "mu = -1 | at least 0 | 0.001 to 1"),
    (method("fedprox", mu="x"), "'mu' = 'x' | must be a number | mu = 0.1"),
    (
        method("drop_stragglers"),
        "'deadline_s' is missing | must be given, a number | deadline_s = ...",
    ),
    (
        method("drop_stragglers", deadline_s=1e-09),
        "deadline_s = 1e-09 | the fastest device needs | half of the devices",
    ),
    (
        method("fedprox", deadline_s=1e-12),
        "deadline_s = 1e-12 | the fastest device needs | half of the devices",
    ),
    (method("fedasync", alpha=0), "alpha = 0 | must lie in (0, 1] | 0.6"),
    (method("fedasync", rho=-1), "rho = -1 | at least 0 | 0.005"),
    (
        method("fedasync", staleness="hing"),
        "staleness 'hing' | must be one of constant, hinge, polynomial | did you mean 'hinge'",
    ),
    (method("fedasync", a=-1), "a = -1 | at least 0 | 0.5"),
    (
        method("fedbuff", buffer_size=5),
        "buffer_size = 5 | between 1 and the 4 clients at work | a tenth",
    ),
    (
        method("fedbuff", buffer_size=2, server_learning_rate=0),
        "server_learning_rate = 0 | positive | 1.0",
    ),
    (method("fedfix"), "'interval_s' is missing | must be given, a number | interval_s = ..."),
    (method("fedfix", interval_s=-1), "interval_s = -1 | must be a positive number | middling"),
    (method("fedfix", interval_s=1, most_windows=0), "most_windows = 0 | at least 1 | no cap"),
    (method("prfl"), "recovery without validation data | held-out | validation_fraction"),
    (pruned(density={"start": (0.5, 0)}), "start = (0.5, 0) | in (0, 1] | (1.0,)"),
    (pruned(density={"lowest": 0}), "lowest = 0 | must lie in (0, 1] | leave it out"),
    (pruned(density={"core": 0.2}), "core = 0.2 | must be at most lowest = 0.1 | use 0.05"),
    (pruned(density={"interval": 0}), "interval = 0 | must be at least 1 | leave it out"),
    (pruned(density={"dense_share": 2}), "dense_share = 2 | must lie in [0, 1] | leave it out"),
    (pruned(density=0.5), "'density' = 0.5 | must be a Density | e.g. density = Density("),
    (pruned(recovery={"increment": 2}), "increment = 2 | must lie in (0, 1] | leave it"),
    (pruned(recovery={"patience": 0}), "patience = 0 | must be at least 1 | leave it"),
    (
        pruned(recovery={"patience": 2.5}),
        "'recovery', its option 'patience' = 2.5 | a whole number | patience = 10",
    ),
    (pruned(recover=False), "'recover' | must be one of | did you mean 'recovery'"),
    (pruned(mode="slides"), "mode 'slides' | must be one of code, paper | choose one"),
    (
        pruned(pace="now"),
        "pace 'now' | must be one of single, sync, window | did you mean 'window'",
    ),
    (
        pruned(distribution="all"),
        "distribution 'all' | must be one of distinct, residual, unicast | choose one",
    ),
    (pruned(interval_s=0), "interval_s = 0 | a positive number | author"),
    (
        pruned(links={"sizes": "zip"}),
        "sizes 'zip' | must be one of bitmap, coo64, dense, index | choose one",
    ),
    (
        pruned(links={"server_up_bytes_per_s": 0}),
        "server link of 0 | must be positive | use inf",
    ),
    (pruned(links={"slack_s": -1}), "slack_s = -1 | at least 0 | use 0.1"),
    (pruned(merge={"server_step": 2}), "server_step = 2 | must lie in [0, 1] | leave"),
    (pruned(merge={"staleness": "old"}), "staleness 'old' | must be one of | choose one"),
    (
        pruned(memory={"limit_bytes": 1}),
        "buffers of 4 clients | exceed limit_bytes = 1 | roll_back = False",
    ),
    (
        pruned(memory={"buffer_density": 0}),
        "buffer_density = 0 | must lie in (0, 1] | leave it out",
    ),
    (
        pruned(memory={"buffer_density": 0.2}),
        "buffer_density = 0.2 | is below the mean density | raise it, or lower densities",
    ),
    (
        method("prfl_fedasyn", merge={"buffered": True}),
        "'merge', its option 'buffered' | must be one of a, b, server_step, staleness | choose",
    ),
    (method("nested_mask_sync", adapt=True), "'adapt' | must be one of | choose one"),
    (
        method("fedyogi", server_learning_rate=0),
        "server_learning_rate = 0 | must be positive | 0.01 for yogi",
    ),
    (method("fedadam", tau=0), "tau = 0 | must be positive | 0.001"),
    (method("fedadam", b1=1), "b1 = 1 | [0, 1) | 0.9 and 0.99"),
    (
        method("fedyogi", server_optimizer="adam"),
        "'server_optimizer' | must be one of b1 | did you mean",
    ),
    (
        method("fedpmt", depths=(1, 9)),
        "depths = (1, 9) | 1 and the model's 2 blocks | leave it out",
    ),
    (method("fedpmt", depths=(0,)), "depths = (0,) | 1 and the model's 2 blocks | leave it out"),
    (method("fedpmt", depths=(1.5,)), "'depths' = (1.5,) | each a whole number | depths"),
    (
        method("fedpmt", capacity=(0.5, 1.0)),
        "capacity of shape (2,) | each of the 4 clients | divide",
    ),
    (method("fedpmt", capacity=(1.0, 2.0, 1.0, 1.0)), "from 1.0 to 2.0 | (0, 1] | divide"),
    (method("fedpmt", capacity="all"), "'capacity' = 'all' | or a function | capacity"),
    (method("fedpmt", schedule="cosin"), "schedule 'cosin' | constant, cosine | 'cosine'?"),
    (method("fedpmt", decay_rounds=0), "decay_rounds = 0 | must be positive | 50"),
    (method("fiarse", sizes=()), "sizes = () | (0, 1] | (1, 0.25)"),
    (method("fiarse", sizes=(0.25, 1)), "sizes = (0.25, 1) | the largest first | (1, 0.25)"),
    (method("fiarse", sizes=(1, 0)), "sizes = (1, 0) | shares in (0, 1] | (1, 0.25)"),
    (method("fiarse", levels=(0, 4, 0, 0)), "levels of shape (4,) | of the 4 sizes | leave it out"),
    (method("fiarse", levels=(0, 1)), "levels of shape (2,) | each of the 4 clients | leave it"),
    (method("fiarse", holders="all"), "'all' | must be one of | choose"),
    (method("fiarse", flops="sparse"), "'sparse' | must be one of | choose"),
    (method("fiarse", server_learning_rate=0), "server_learning_rate = 0 | positive | use 1"),
    (method("feddrop", scope="conv"), "'conv' | must be one of | choose"),
    (method("feddrop", capacity=(0.5,)), "capacity of shape (1,) | each of the 4 clients | divide"),
    (
        method("feddrop", latency_s=1.0),
        "latency_s = 1.0 with scope = 'all_hidden' | fully connected | scope='fc'",
    ),
    (method("feddrop", scope="fc", latency_s=-1), "latency_s = -1 | must exceed | allow more time"),
    (method("feddrop", merge="mean"), "'mean' | must be one of | choose"),
    (method("feddrop", rate=0.5, capacity=(1.0,) * 4), "rate = 0.5 | one rate | leave out rate"),
    (method("feddrop", rates=(0.5, 1.0)), "rates = (0.5, 1.0) | the largest first | (1.0, 0.5"),
    (
        lambda here: algorithms.feddrop(
            Problem(models.build("logistic", (8, 8, 1), 10), problem().data, problem().fleet),
            learning_rate=0.1,
        ),
        "model 'logistic' | no hidden units | hidden layer",
    ),
    (
        lambda here: algorithms.register(algorithms.fedavg),
        "'fedavg' | registered already | another name",
    ),
    (cramped, "clients [2] (of 1) | exceed the memory | smaller batches"),
]

# ---- comparisons and profiles --------------------------------------------------------------------


def compared(*changes: dict[str, Any], seeds: Any = None, **compare: Any) -> Call:
    """Compares the base configuration, with a section `compare`, with changed ones."""
    first = {**BASE, "compare": {"methods": {"A": {}}, **compare}}
    configs = [first, *(changed(**change) for change in changes)]
    return lambda here: experiment.compare(configs, here, seeds)


TWICE = {"A b": {}, "a-B": {"name": "fedpmt"}}


def profile_file(text: str) -> Call:
    def call(here: Path) -> None:
        (here / "p.json").write_text(text)
        MeasuredProfile.load(here / "p.json")

    return call


def other_profile(here: Path) -> None:
    one = (1.0,)
    profile = MeasuredProfile("m", "cpu", 1, 1, ("fc9",), 1, one, one, one, one, one)
    with_measured(problem().cost, profile)


COMPARISONS_AND_PROFILES: list[Case] = [
    (lambda here: experiment.compare([], here), "no configuration | at least one | --config=FILE"),
    (compared(methods={}), "methods = {} | must map labels | 'FedAvg'"),
    (compared(methods=["fedavg"]), "'methods' = ['fedavg'] | must be a dict | correct methods"),
    (
        compared(methods={"A": "fedpmt"}),
        "methods.A = 'fedpmt' | mapping of options | {'name': 'fedpmt'}",
    ),
    (compared(seed=(1,)), "'seed' | must be one of methods | 'seeds'?"),
    (compared(seeds=(1, 1)), "seeds = [1, 1] | must be different | 0,1,2"),
    (compared(seeds=()), "seeds = [] | at least one | 0,1,2"),
    (
        lambda here: experiment.compare(
            [{**BASE, "compare": {"methods": {"A": {}}, "seeds": 3}}], here
        ),
        "'seeds' = 3 | must be a list | seeds = (0,)",
    ),
    (compared(seeds=(0, -1)), "seed = -1 | at least 0 | 0, 1, 2"),
    (compared(targets=(90,)), "target accuracy 90 | (0, 1] | 0.97"),
    (
        lambda here: experiment.compare([{**BASE, "compare": {"methods": {"A": {}}}}] * 2, here),
        "'A' and 'A' | must differ | another label",
    ),
    (compared(methods=TWICE), "'A b' and 'a-B' | a directory of its own | another label"),
    (
        compared({"fleet": {"name": "uniform"}}),
        "fleet.name: 'speed_groups' -> 'uniform' | must agree | change one",
    ),
    (compared({"data__seed": 1}), "data.seed: None -> 1 | must agree | change one"),
    (
        compared({"compare": {"methods": {"B": {}}, "targets": (0.8,)}}, targets=(0.9,)),
        "compare.targets = [0.8] | must agree with [0.9] | change one",
    ),
    (
        compared(methods={"A": {}, "B": {"name": "fedpmt", "depths": (7,)}}),
        "depths = [7] | 2 blocks | leave it out",
    ),
    (
        compared({"run__chunk": 0, "algorithm__name": "fedpmt"}),
        "chunk = 0 | at least 1 client | choose automatically",
    ),
    (lambda here: compare_records({}, (), here), "records | is empty | at least one"),
    (profile_file("{"), "p.json | not valid JSON | measure again"),
    (profile_file('{"format": 7}'), "format 7 | must be 1 | measure again"),
    (other_profile, "profile of 'm' | must match the table's blocks | same model"),
]


def waiting(here: Path) -> None:
    """Runs SCAFFOLD under a pace that leaves tasks waiting."""
    made = algorithms.scaffold(problem(), learning_rate=0.1)._replace(pace=clock.window(1.0))
    Simulation(made, problem(), rounds=1)


def with_step(name: str, step: object, **options: Any) -> Call:
    """Composes a method on the base problem with exit heads with a transformation."""

    def call(here: Path) -> None:
        compose(with_heads(name, **options)(here), step)

    return call


REMEMBERING: list[Case] = [
    (
        method("scaffold", memory_bytes=1e3),
        "memory_bytes = 1000 | less than scaffold keeps of 4 clients | fewer clients",
    ),
    (method("feddyn", memory_bytes=0), "memory_bytes = 0 | less than feddyn keeps | raise it"),
    (method("feddyn", alpha=0), "alpha = 0 | must be positive | try 0.01"),
    (
        method("feddyn", alpha=float("nan")),
        "'alpha' = nan | must be a finite number | alpha = 0.01",
    ),
    (
        method("scaffold", server_learning_rate=0),
        "server_learning_rate = 0 | must be positive | 1.0 for sgd",
    ),
    (waiting, "pace of scaffold | leaves tasks waiting | a barrier or a deadline"),
    (method("fedavg", proximal=-1), "proximal = -1 | at least 0 | try 0.001 to 1"),
]

SERVERS: list[Case] = [
    (
        with_step("fedgkt", server.optimizer("sgd", learning_rate=1.0), client_blocks=1),
        "server.optimizer of fedgkt | outside the merge | leave it out",
    ),
    (
        with_step("dtfl", server.normalised()),
        "server.normalised of dtfl | a rule of its own | by the mean (fedavg, fedpmt)",
    ),
    (
        lambda here: server.optimizer("adam", learning_rate=float("inf")),
        "'learning_rate' = inf | must be a finite number | correct learning_rate",
    ),
    (
        lambda here: server.optimizer(0.1),
        "server_learning_rate = None | positive and finite | 0.01 for yogi",
    ),
    (
        method("fedavg", compose=[{"name": "server.optimiser", "choice": "adam"}]),
        "transformation 'server.optimiser' | must be one of | did you mean 'server.optimizer'?",
    ),
    (
        method("fedavg", compose=[{"name": "server.optimizer", "choice": "adam", "rate": 1.0}]),
        "'server.optimizer' 'rate' | must be one of choice, learning_rate | choose",
    ),
]

CASES = [*METHODS, *REMEMBERING, *SERVERS, *SPLIT, *COMPARISONS_AND_PROFILES]
