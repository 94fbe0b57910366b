"""Time and work of the devices, as columns computed from the client tasks of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedjax_het.report.population import shortened
from fedjax_het.report.records import RunRecord
from fedjax_het.report.units import quantity

_MOST_GROUPS = 8
# Characters of the name of a group.
_LONGEST = 24
_WHOLE = ("step", "client", "first_block", "exit_block")
_REAL = ("dispatched_s", "download_s", "compute_s", "upload_s", "flops", "samples")


@dataclass(frozen=True)
class Tasks:
    """The client tasks of a run, one entry per task.

    A device is busy, or suspended, from dispatch until its result arrives, its task fails, or the
    server merges without it; then it waits for the merge, unless its task failed.

    Attributes:
      step, client, first_block, exit_block: columns of the same names, int64[tasks].
      dispatched_s, download_s, compute_s, upload_s: columns of the same names, float64[tasks].
      end_s: time at which the device finished, failed or was interrupted by the merge,
        float64[tasks].
      merge_s: time at which the server merged the step of the task, float64[tasks].
      flops, samples: columns of the same names, float64[tasks].
      failed: whether the device gave the task up, bool[tasks].
      used: whether the result reached the model (for `partial`: a part of it), bool[tasks].
    """

    step: np.ndarray
    client: np.ndarray
    first_block: np.ndarray
    exit_block: np.ndarray
    dispatched_s: np.ndarray
    download_s: np.ndarray
    compute_s: np.ndarray
    upload_s: np.ndarray
    end_s: np.ndarray
    merge_s: np.ndarray
    flops: np.ndarray
    samples: np.ndarray
    failed: np.ndarray
    used: np.ndarray

    @property
    def busy_s(self) -> np.ndarray:
        """Seconds of download, computation and upload before the merge, float64[tasks]."""
        return self.end_s - self.dispatched_s

    @property
    def waiting_s(self) -> np.ndarray:
        """Seconds for which the device waited for the merge, float64[tasks]."""
        return np.where(self.failed, 0.0, self.merge_s - self.end_s)


def tasks_of(record: RunRecord) -> Tasks:
    """The client tasks of a run as columns."""
    # Probes are no tasks.
    tasks = record.client_columns["status"] != "probed"
    columns = {name: column[tasks] for name, column in record.client_columns.items()}
    merge_s = record.column("virtual_s")[np.searchsorted(record.column("step"), columns["step"])]
    planned_s = (
        columns["dispatched_s"] + columns["download_s"] + columns["compute_s"] + columns["upload_s"]
    )
    arrived_s = np.where(np.isfinite(columns["arrived_s"]), columns["arrived_s"], planned_s)
    return Tasks(
        **{name: columns[name].astype(np.int64) for name in _WHOLE},
        **{name: columns[name] for name in _REAL},
        end_s=np.minimum(arrived_s, merge_s),
        merge_s=merge_s,
        failed=columns["status"] == "failed",
        used=np.isin(columns["status"], ("merged", "partial")),
    )


@dataclass(frozen=True)
class Groups:
    """Groups of devices of similar speed, the fastest first.

    Attributes:
      labels: name and speed of each group.
      of_client: group of each device, one int64[n] per record; -1 for a device without a task if
        the groups are made from measured speeds.
    """

    labels: tuple[str, ...]
    of_client: tuple[np.ndarray, ...]

    @property
    def names(self) -> list[str]:
        """The labels without the speeds."""
        return [label.split("\n")[0] for label in self.labels]

    @property
    def sizes(self) -> np.ndarray:
        """Number of devices in each group (of the first record), int64[groups]."""
        of_client = self.of_client[0]
        return np.bincount(of_client[of_client >= 0], minlength=len(self.labels))


def _speeds(keys: Sequence[np.ndarray], tasks: Sequence[Tasks], count: int) -> np.ndarray:
    """FLOP/s over all tasks of each key, float64[count]; NaN for a key without tasks."""
    key, flops, compute_s = (
        np.concatenate(parts)
        for parts in (
            [k[t.client] for k, t in zip(keys, tasks, strict=True)],
            [t.flops for t in tasks],
            [t.compute_s for t in tasks],
        )
    )
    done = np.bincount(key, flops, count)
    took = np.bincount(key, compute_s, count)
    return np.divide(done, took, out=np.full(count, np.nan), where=took > 0)


def group_devices(records: Sequence[RunRecord], tasks: Sequence[Tasks]) -> Groups:
    """The groups of the fleet, ordered by the speed at which they computed.

    A fleet with more than eight groups (for example one per device) is divided into quarters by
    speed.

    Args:
      records: records of runs on one fleet.
      tasks: results of `tasks_of` for these records, in the same order.
    """
    given = [record.population.device_groups for record in records]
    ids = np.unique(np.concatenate(given))
    if ids.size <= _MOST_GROUPS:
        keys = [np.searchsorted(ids, groups) for groups in given]
        names = [_class_name(records[0], int(i)) for i in ids]
    else:
        keys = [_quarters(groups.size, t) for groups, t in zip(given, tasks, strict=True)]
        names = [f"speed Q{i}" for i in range(1, 5)]
    speeds = _speeds(keys, tasks, len(names))
    order = np.argsort(-np.nan_to_num(speeds), kind="stable")
    if ids.size > _MOST_GROUPS:
        order = np.arange(len(names))  # already in order, except for rounding among equal speeds
    rank = np.append(np.argsort(order), -1)  # the last entry keeps -1 at -1
    labels = tuple(
        names[i] + (f"\n{quantity(speeds[i], 'FLOP/s')}" if np.isfinite(speeds[i]) else "")
        for i in order
    )
    return Groups(labels, tuple(rank[key] for key in keys))


def _class_name(record: RunRecord, number: int) -> str:
    """The name that the fleet gives to a group, shortened to fit into a plot, or its number."""
    groups = record.summary.get("fleet", {}).get("groups")
    given = [*groups] if isinstance(groups, dict) else []
    name = given[number] if number < len(given) else str(number)
    if name == str(number):
        return f"group {number}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def device_labels(record: RunRecord, devices: np.ndarray) -> list[str]:
    """The names of devices, or if the fleet has none, the ids of their clients."""
    population = record.population
    if population.device_names is not None:
        return [shortened(name) for name in population.device_names[devices]]
    return [population.client_name(int(device)) for device in devices]


def _quarters(devices: int, tasks: Tasks) -> np.ndarray:
    """Quarter of each device by speed, 0 the fastest; -1 for devices without a task."""
    speed = np.nan_to_num(_speeds([np.arange(devices)], [tasks], devices))
    seen = np.unique(tasks.client)
    quarter = np.full(devices, -1)
    quarter[seen[np.argsort(-speed[seen], kind="stable")]] = np.arange(seen.size) * 4 // seen.size
    return quarter


def trained_share(record: RunRecord, tasks: Tasks, of_client: np.ndarray, count: int) -> np.ndarray:
    """Share of each group's tasks that updated each block of the model.

    Returns:
      Shares, float64[blocks, count]; NaN for a group without tasks. A task covers the blocks from
      `first_block` to `exit_block`, and none if it was dropped or not finite.
    """
    blocks = np.arange(record.summary["num_blocks"])[:, None]
    covers = (tasks.first_block <= blocks) & (blocks <= tasks.exit_block) & tasks.used
    group = of_client[tasks.client]
    total = np.bincount(group, minlength=count)
    covered = np.stack([np.bincount(group, row, count) for row in covers.astype(np.float64)])
    return np.divide(covered, total, out=np.full(covered.shape, np.nan), where=total > 0)


def mean_by_group(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Mean of a task column in each group, float64[count]; NaN for a group without tasks."""
    total = np.bincount(group, minlength=count)
    return np.divide(
        np.bincount(group, values, count), total, out=np.full(count, np.nan), where=total > 0
    )


def skipped_share(tasks: Tasks) -> float:
    """Share of the work saved, compared with training the run's largest sub-model in every task.

    Sub-models are compared by FLOPs per sample, so that more data does not look like a larger
    sub-model.
    """
    known = tasks.samples > 0
    if not known.any():
        return 0.0
    full = (tasks.flops[known] / tasks.samples[known]).max() * tasks.samples[known].sum()
    return float(1 - tasks.flops[known].sum() / full) if full > 0 else 0.0


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, int64, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
