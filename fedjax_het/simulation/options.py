"""The options of a run, which are not part of the method or the problem."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Seed, Unlimited
from fedjax_het.common.options import check_options, check_types
from fedjax_het.common.writing import encodable, usable_path
from fedjax_het.contract.algorithm import Variables
from fedjax_het.engine.resources import ConvolutionChoice, Execution, Resources, check_resources
from fedjax_het.problem import Problem
from fedjax_het.simulation.sinks import SINKS

# Characters of the longest name: every figure and table of a page repeats it.
_LONGEST_NAME = 200

ClientEval = Literal["never", "last", "always"]

# Options that a resumed run may change: those for its length and for its output.
FREE = (
    "rounds",
    "max_virtual_s",
    "target",
    "targets",
    "patience",
    "monitor",
    "client_eval",
    "personal",
    "checkpoint_every",
    "workdir",
    "name",
    "sinks",
    # Samples are the same wherever they lie.
    "stream",
    # Its place does not matter; the identity has a digest of its values.
    "initial",
)

# Options that concern the machine; a resumed run may change them, which may change its last bits.
MACHINE = ("execution", "chunk", "max_routes", "devices", "convolution")
# Options that a resumed run may change; results change only if plans depend on accuracies.
EVALUATION = ("eval_every", "eval_every_s")


class RunKeywords(TypedDict, total=False):
    """The fields of `RunOptions` as keywords, for editors and type checkers."""

    rounds: Required[int]
    seed: Seed
    name: str
    workdir: str | Path | None
    max_virtual_s: Unlimited | None
    target: float | None
    targets: Sequence[float]
    target_metric: str
    patience: Count | None
    monitor: str
    client_eval: ClientEval
    personal: bool
    eval_every: Count
    eval_every_s: float | None
    checkpoint_every: Count
    execution: Execution
    chunk: Count | None
    max_routes: Count
    devices: Count
    convolution: ConvolutionChoice
    stream: bool
    sinks: Sequence[str]
    initial: str | Path | Variables | None


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; none of them is part of the method.

    Attributes:
      rounds: number of server steps.
      seed: seed of everything random; two runs with the same seed and options are bit-identical.
      name: label in records; the algorithm's name if empty.
      workdir: directory for records and checkpoints; None keeps the records in memory. If the
        directory holds an interrupted run of the same configuration, that run is resumed; options
        in `FREE`, `MACHINE` and `EVALUATION` may be others.
      max_virtual_s: limit of virtual time in seconds; the run ends with the first step that reaches
        it. None means no limit.
      target: value of the target metric on the test set at which the run ends, at the first
        evaluation that reaches it, or None.
      targets: values of the target metric whose times the summary lists (`target` is added).
      target_metric: name of the metric of the objective that targets refer to, "loss" included; ""
        for its first.
      patience: number of evaluations without a better value after which the run ends; the model of
        the best evaluation is kept (`Result.best`). None for no limit.
      monitor: column that patience looks at, e.g. "val_loss" or "macro_f1"; "" for the target
        metric, on the validation set if there is one.
      client_eval: evaluations at which every client gets a row in `clients_eval.jsonl`: "never",
        "last", or "always".
      personal: whether these rows also have the metrics of the client's model after one more local
        training, as `personal_<metric>`.
      eval_every: rounds between evaluations; the last round is always evaluated.
      eval_every_s: virtual seconds between evaluations, used instead of `eval_every`, or None.
      checkpoint_every: rounds between checkpoints.
      execution: way to run the clients, "routed", "masked" or "debug"; see `Resources`.
      chunk: number of clients trained side by side; None chooses it by backend.
      max_routes: largest number of compiled routes.
      devices: number of local devices over which clients are sharded. The command line divides a
        CPU into as many, for models whose operations are too small for all its cores.
      convolution: way to choose lowerings, "table" or "tuned" (measured on this device); see
        `Resources`.
      stream: whether samples stay on the host, or in memory-mapped files, and only those of the
        clients of a round are copied to the devices. The model has the same bits.
      sinks: further places for the numbers of `metrics.jsonl`, keys of `SINKS`: "tensorboard"
        (events in the work directory), "wandb", "mlflow", "trackio"; extras of these names, and
        "tracking" for TensorBoard. A sink that fails later does not end the run.
      initial: model to start from, for every seed: the work directory of a finished run (of any
        method or data), a safetensors file, or variables. Names and shapes must be those of the
        problem's model. None draws the model with `seed`. A run that has a checkpoint continues
        without the file; while the file exists, it must hold the same values.
    """

    rounds: Count
    seed: Seed = 0
    name: str = ""
    workdir: str | Path | None = None
    max_virtual_s: Unlimited | None = None
    target: float | None = None
    targets: Sequence[float] = ()
    target_metric: str = ""
    patience: Count | None = None
    monitor: str = ""
    client_eval: ClientEval = "never"
    personal: bool = False
    eval_every: Count = 1
    eval_every_s: float | None = None
    checkpoint_every: Count = 20
    execution: Execution = "routed"
    chunk: Count | None = None
    max_routes: Count = 32
    devices: Count = 1
    convolution: ConvolutionChoice = "table"
    stream: bool = False
    sinks: Sequence[str] = ()
    initial: str | Path | Variables | None = None

    def __post_init__(self) -> None:
        check_types(vars(self), "run option", type(self))
        require(
            encodable(self.name),
            f"name = {self.name!r}",
            "must be text without halves of surrogate pairs, which no file can hold",
            "write it in characters of Unicode",
        )
        require(
            len(self.name) <= _LONGEST_NAME,
            f"name of {len(self.name)} characters",
            f"must have at most {_LONGEST_NAME}, because every figure and table repeats it",
            "choose a shorter one",
        )
        for sink in self.sinks:
            require_known(sink, SINKS, "sink")
        if self.workdir is not None:
            usable_path(self.workdir, "workdir")
        for name in ("rounds", "eval_every", "checkpoint_every", "patience"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"{name} = {value!r}",
                "must be a whole number of at least 1",
                "count in evaluations" if name == "patience" else "count in server steps",
            )
        require(
            self.seed >= 0,
            f"seed = {self.seed!r}",
            "must be a whole number of at least 0",
            "use 0, 1, 2 for three repetitions",
        )
        for value in (*self.targets, *([] if self.target is None else [self.target])):
            require(
                isinstance(value, int | float) and math.isfinite(value),
                f"target {value!r}",
                "must be a finite number",
                "give a value of the target metric",
            )
        require(
            not self.personal or self.client_eval != "never",
            "personal = True without rows of clients",
            "adds columns to them",
            "set client_eval = 'last'",
        )
        require(
            self.patience is not None or not self.monitor,
            f"monitor = {self.monitor!r} without patience",
            "is what patience looks at",
            "set patience, in evaluations",
        )
        for name in ("max_virtual_s", "eval_every_s"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"{name} = {value}",
                "must be a positive number of virtual seconds",
                "leave it out for no limit",
            )
        require(
            not self.sinks or self.workdir is not None,
            f"sinks = {self.sinks} without a workdir",
            "need a place to write to",
            "set workdir",
        )
        check_resources(**self.machine)

    @property
    def machine(self) -> dict[str, Any]:
        """The options that concern the machine, by name; see `Resources`."""
        return {name: getattr(self, name) for name in MACHINE}

    def resources(self, problem: Problem) -> Resources:
        """The resources that the engines of a run on this problem share."""
        return Resources(problem, **self.machine, stream=self.stream)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "RunOptions":
        """`RunOptions(**options)` with an `InputError` for unknown or missing names."""
        check_options(options, "run option", cls)
        return cls(**options)
