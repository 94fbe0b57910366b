"""Configurations, and options of a run."""

from pathlib import Path

import numpy as np
from malformed.case import Call, Case, method, problem, ran, trained

from fedjax_het import Problem, algorithms, experiment, models, simulate
from fedjax_het.data import from_arrays
from fedjax_het.fleet import Fleet, from_intervals

# ---- configurations ------------------------------------------------------------------------------

SEE = "see the files in configs/"


def config_file(text: str) -> Call:
    def call(here: Path) -> None:
        (here / "c.py").write_text(text)
        experiment.load_config(str(here / "c.py"))

    return call


CONFIGURATIONS: list[Case] = [
    (lambda here: experiment.plain(3), "type int | must be a mapping | ConfigDict"),
    (trained(modle={}), "'modle' | must be one of algorithm | 'model'?"),
    (trained(run=5), f"config.run = 5 | mapping of options | {SEE}"),
    (trained(fleet=...), f"config.fleet | must be given | {SEE}"),
    (trained(data__source=...), f"config.data.source = None | must be given | {SEE}"),
    (trained(data__source="digit"), "'digit' | must be one of cifar10 | 'digits'?"),
    (trained(data__sed=1), "'sed' | must be one of | 'seed'?"),
    (trained(data__name="x"), "option of data 'name' | must be one of augment | choose one"),
    (trained(data__seed="a"), "'seed' = 'a' | must be a whole number | seed = 0"),
    (trained(data__normalise="z"), "'normalise' = 'z' | must be a list | correct"),
    (
        trained(data__partition=...),
        "'digits' without partition | no natural clients | dirichlet(30",
    ),
    (trained(data__partition={"alpha": 1}), "{'alpha': 1} | has a name | name='dirichlet'"),
    (trained(data__num_clients=...), "num_clients = None | number of clients | num_clients = 30"),
    (
        trained(data__partition__name="dirichelt"),
        "'dirichelt' | must be one of contiguous | 'dirichlet'?",
    ),
    (trained(data__partition__alhpa=1.0), "'alhpa' | must be one of alpha | 'alpha'?"),
    (
        trained(data__partition__alpha=...),
        "'alpha' is missing | must be given, a number | alpha = ...",
    ),
    (trained(data__partition__alpha="big"), "'alpha' = 'big' | must be a number | alpha"),
    (
        trained(data__partition__num_clients=9),
        "partition.num_clients = 9 | belongs to config.data | num_clients = 4",
    ),
    (trained(model__name=...), f"config.model.name = None | must be given | {SEE}"),
    (trained(model__name="leaf_cn"), "'leaf_cn' | must be one of adel_cnn2 | 'leaf_cnn'?"),
    (trained(model__hiden=(8,)), "'hiden' | must be one of dropout, hidden | 'hidden'?"),
    (
        trained(model__hidden="64"),
        "'hidden' = '64' | must be a list, each a whole number | hidden = (200, 200)",
    ),
    (
        trained(model__compute_dtype="float16"),
        "compute_dtype 'float16' | must be one of bfloat16, float32 | 'bfloat16'?",
    ),
    (trained(model__compute_dtype=16), "compute_dtype 16 | must be one of bfloat16 | choose"),
    (trained(model__input_shape=(8, 8)), "input_shape = [8, 8] | follows from | leave it out"),
    (trained(model__name="logistic"), "'hidden' | none to choose | leave it out"),
    (trained(fleet__name="speed_group"), "'speed_group' | must be one of adel | 'speed_groups'?"),
    (
        trained(fleet__relative_speed=(1.0,)),
        "'relative_speed' | must be one of | 'relative_speeds'?",
    ),
    (
        trained(fleet__relative_speeds="fast"),
        "'relative_speeds' = 'fast' | must be a list, each a number | (0.34, 0.71, 1.0)",
    ),
    (trained(fleet__num_clients=9), "config.fleet.num_clients = 9 | follows from | leave it out"),
    (trained(fleet__seed=-1), "seed = -1 | >= 0 | any such number"),
    (trained(algorithm=...), f"config.algorithm | must be given | {SEE}"),
    (trained(algorithm__name="fedavgg"), "'fedavgg' | drop_stragglers | 'fedavg'?"),
    (trained(algorithm__problem=1), "config.algorithm.problem = 1 | follows from | leave it out"),
    (
        trained(algorithm__learning_rte=0.1),
        "'learning_rte' | must be one of batch_size | 'learning_rate'?",
    ),
    (
        trained(algorithm__learning_rate=...),
        "'learning_rate' is missing | must be given, a number | learning_rate = ...",
    ),
    (lambda here: experiment.load_config("nowhere.py"), "'nowhere.py' | is not a file | configs/"),
    (config_file("x = 1\n"), "c.py' | has no get_config() | configs/"),
    (config_file("def (:\n"), "line 1 | is not Python | correct the file"),
]

# ---- options of a run, cohort --------------------------------------------------------------------


def never_together(here: Path) -> None:
    """Two devices that are on in turn, and a cohort of both."""
    when = from_intervals([np.array([[0.0, 4.0]]), np.array([[5.0, 9.0]])], [10.0, 10.0])
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    pair = from_arrays(x, y, x, y, clients=[0, 0, 1, 1], num_classes=2)
    devices = Fleet(np.full(2, 1e9), availability=when)
    setting = Problem(models.build("logistic", (3,), 2), pair, devices)
    simulate(algorithms.fedavg(setting, learning_rate=0.1), setting, rounds=1, workdir=here)


OPTIONS_OF_A_RUN: list[Case] = [
    (ran(round=1), "'round' | must be one of checkpoint_every | 'rounds'?"),
    (
        trained(run__rounds=...),
        "'rounds' is missing | must be given, a whole number | rounds = ...",
    ),
    (ran(rounds=0), "rounds = 0 | at least 1 | server steps"),
    (ran(rounds="many"), "'rounds' = 'many' | must be a whole number | rounds"),
    (ran(rounds=2.5), "'rounds' = 2.5 | must be a whole number | rounds"),
    (ran(rounds=True), "'rounds' = True | must be a whole number | rounds"),
    (ran(seed=-1), "seed = -1 | at least 0 | 0, 1, 2"),
    (ran(target=97), "target accuracy 97 | (0, 1] | 0.97"),
    (ran(targets=0.9), "'targets' = 0.9 | must be a list | targets"),
    (ran(targets=(0.8, 90)), "target accuracy 90 | (0, 1] | 0.97"),
    (ran(eval_every=0), "eval_every = 0 | at least 1 | server steps"),
    (ran(eval_every_s=-1), "eval_every_s = -1 | positive number of virtual seconds | leave it out"),
    (
        ran(max_virtual_s=float("nan")),
        "'max_virtual_s' = nan | inf or a finite number | correct max_virtual_s",
    ),
    (
        ran(max_virtual_s="long"),
        "'max_virtual_s' = 'long' | must be a number or None | max_virtual_s",
    ),
    (ran(checkpoint_every=0), "checkpoint_every = 0 | at least 1 | server steps"),
    (ran(sinks=["wandbb"]), "sink 'wandbb' | must be one of mlflow | did you mean 'wandb'"),
    (
        lambda here: simulate(
            algorithms.fedavg(problem(), learning_rate=0.1), problem(), rounds=1, sinks=["wandb"]
        ),
        "without a workdir | a place to write | set workdir",
    ),
    (ran(execution="fast"), "'fast' | must be one of debug | choose"),
    (ran(convolution="fast"), "'fast' | must be one of table, tuned | choose"),
    (ran(chunk=0), "chunk = 0 | at least 1 client | choose automatically"),
    (ran(chunk=1.5), "'chunk' = 1.5 | must be a whole number or None | chunk"),
    (ran(max_routes=0), "max_routes = 0 | at least 1 | default of 32"),
    (ran(devices=0), "devices = 0 | between 1 and | use fewer"),
    (ran(devices=4096), "devices = 4096 | between 1 and | XLA_FLAGS"),
    (
        method("fedavg", clients_per_round=9),
        "clients_per_round = 9 | at most the 4 clients | full participation",
    ),
    (never_together, "clients_per_round = 2 | never that many | sample fewer"),
]

CASES = [*CONFIGURATIONS, *OPTIONS_OF_A_RUN]
