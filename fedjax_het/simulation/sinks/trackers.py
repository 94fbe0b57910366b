"""Sinks of experiment trackers: Weights & Biases, MLflow and Trackio, each an extra of its name.

Where a run goes (a server, a project, offline) is said by the trackers' own environment variables.
"""

import hashlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from fedjax_het.common.jsonio import jsonable
from fedjax_het.simulation.sinks.base import Sink, SinkRun, missing

_PROJECT = "fedjax-het"
# The clock of the simulation, over which curves are shown.
_AXIS = "virtual_s"
# Limits of MLflow: characters of a name, length of a parameter, parameters of a call.
_NOT_IN_NAMES = re.compile(r"[^\w\-./ :]")
_LONGEST_PARAMETER, _MOST_PARAMETERS = 500, 100


def _id(run: SinkRun) -> str:
    """A name of the run that stays when it is resumed."""
    place = os.fspath(run.workdir.absolute())
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class _Logged:
    """A run of `wandb` or `trackio`, which have the same calls."""

    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def wandb(run: SinkRun) -> Sink:
    """Weights & Biases; offline, in the work directory, unless there is a key or `WANDB_MODE`."""
    try:
        import wandb as library
    except ImportError as error:
        raise missing("wandb", "wandb", "wandb") from error
    # Without a key, an online run would ask for one, and wait.
    offline = "WANDB_MODE" not in os.environ and library.api.api_key is None
    opened = library.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=run.name or None,
        dir=run.workdir,
        id=_id(run),
        resume="allow",
        reinit="create_new",
        config=jsonable(run.config),
        mode="offline" if offline else None,
        settings=library.Settings(silent=True, console="off"),
    )
    opened.define_metric("*", step_metric=_AXIS)
    return _Logged(opened)


def trackio(run: SinkRun) -> Sink:
    """Trackio; on this machine, unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says where."""
    try:
        import trackio as library
    except ImportError as error:
        raise missing("trackio", "trackio", "trackio") from error
    opened = library.init(
        project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
        name=f"{run.name or 'run'}-{_id(run)[:6]}",
        resume="allow",
        config=jsonable(run.config),
        embed=False,
    )
    return _Logged(opened)


class _Mlflow:
    """A run of MLflow through its client, which has no state outside of it."""

    def __init__(self, client: Any, run_id: str, metric: Any):
        self._client, self._id, self._metric = client, run_id, metric

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        now_ms = int(1000 * time.time())
        rows = [
            self._metric(_NOT_IN_NAMES.sub("_", name), value, now_ms, step)
            for name, value in numbers.items()
        ]
        self._client.log_batch(self._id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def mlflow(run: SinkRun) -> Sink:
    """MLflow; at `MLFLOW_TRACKING_URI`, or in `mlflow.db` in the work directory."""
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
    except ImportError as error:
        raise missing("mlflow", "mlflow", "mlflow") from error
    # MLflow 3 keeps files in folders no longer.
    file = f"sqlite:///{(run.workdir.absolute() / 'mlflow.db').as_posix()}"
    client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", file))
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    found = client.get_experiment_by_name(project)
    experiment = client.create_experiment(project) if found is None else found.experiment_id
    tag = "fedjax_het.id"
    earlier = client.search_runs([experiment], f"tags.`{tag}` = '{_id(run)}'", max_results=1)
    if earlier:
        client.update_run(earlier[0].info.run_id, "RUNNING")
        return _Mlflow(client, earlier[0].info.run_id, Metric)
    made = client.create_run(experiment, run_name=run.name or None, tags={tag: _id(run)})
    options = [
        Param(name, str(value)[:_LONGEST_PARAMETER])
        for name, value in _flat(jsonable(run.config)).items()
    ]
    for start in range(0, len(options), _MOST_PARAMETERS):
        client.log_batch(made.info.run_id, params=options[start : start + _MOST_PARAMETERS])
    return _Mlflow(client, made.info.run_id, Metric)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their path."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = _NOT_IN_NAMES.sub("_", f"{prefix}{name}")
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat
