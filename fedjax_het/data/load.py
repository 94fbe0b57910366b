"""Loading federated data by the name of a data set, or from what a reader made, in one call."""

from typing import Any

import jax
import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.data.checks import check_whole
from fedjax_het.data.federated import FederatedData, Normalise, from_arrays
from fedjax_het.data.partition import Partitioner
from fedjax_het.data.sources import RawData, load
from fedjax_het.data.sources.files import DataDir


def load_federated(
    source: str | RawData,
    data_dir: DataDir = None,
    *,
    partition: Partitioner | None = None,
    num_clients: int | None = None,
    min_client_samples: int = 1,
    test_others: bool | None = None,
    normalise: Normalise | None = None,
    augment: str | None = None,
    validation_fraction: float = 0.0,
    per_client_cap: int | None = None,
    seed: int = 0,
    **options: Any,
) -> FederatedData:
    """Reads a data set and assigns its samples to clients.

    A file of one's own is read by the name of its format, or by a function of `fh.data`.

    Example::

        data = load_federated("mnist", "~/data", partition=dirichlet(30, alpha=0.5), seed=1)
        data = load_federated("femnist", "~/data", num_clients=100)
        data = load_federated("csv", path="hospitals.csv", label="outcome", client="hospital")
        data = load_federated(read_csv("hospitals.csv", "outcome"), partition=iid(5))

    Args:
      source: name of the data set or the format, a key of `SOURCES`; or a `RawData`.
      data_dir: directory with the files of a set by name; default the environment variable
        `FEDJAX_HET_DATA`.
      partition: partitioner from `fedjax_het.data.partition`; None uses the natural clients, which
        femnist, flights, speech_commands and shakespeare have, and files that name them.
      num_clients: number of natural clients to keep, those with the most training samples; default
        all. A partitioner states its own number.
      min_client_samples: least number of training samples of a natural client; clients with fewer
        are left out.
      test_others: whether the test samples of natural clients that are left out stay in the test
        set. Their owners are only tested, as clients that were never seen. None: only if the set
        is split by client, so that no owner of a test sample trains.
      normalise: pair (mean, std), each one number or one per channel, applied after scaling to
        [0, 1]; default the customary values of the set.
      augment: name of the augmentation, `"crop_flip"` or `"crop_flip_cutout"`, or None.
      validation_fraction: share of the training samples moved to `val_x`, `val_y`.
      per_client_cap: largest number of samples a client keeps.
      seed: seed of the partition, the validation split and the cap.
      **options: options of the source, e.g. `window` for text, `path` and `label` for a file.

    Returns:
      The `FederatedData`. Test samples whose natural owner does not train are left out, unless
      `test_others`. With a partitioner all test samples stay, and they have no owner.

    Raises:
      InputError: see `load` and `from_arrays`.
    """
    if isinstance(source, RawData):
        given = [*options, *([] if data_dir is None else ["data_dir"])]
        require(
            not given,
            f"options {given} for a RawData",
            "belong to the reader that made it",
            "give them there",
        )
        raw = source
    else:
        raw = load(source, data_dir, **options)
    if partition is not None:
        require(
            num_clients is None and min_client_samples == 1 and not test_others,
            f"num_clients = {num_clients}, min_client_samples = {min_client_samples}, "
            f"test_others = {test_others}",
            "choose among natural clients, but a partition is given",
            "state the number of clients in the partitioner",
        )
        chosen: dict[str, Any] = {
            "x": raw.x,
            "y": raw.y,
            "test_x": raw.test_x,
            "test_y": raw.test_y,
            "clients": partition,
        }
    else:
        chosen = _natural(raw, num_clients, min_client_samples, test_others)
    return from_arrays(
        **chosen,
        num_classes=raw.num_classes,
        name=raw.name,
        normalise=raw.normalise if normalise is None else normalise,
        augment=augment,
        classes=raw.classes,
        validation_fraction=validation_fraction,
        per_client_cap=per_client_cap,
        seed=seed,
    )


def _natural(
    raw: RawData, num_clients: int | None, min_samples: int, test_others: bool | None
) -> dict[str, Any]:
    """Samples, labels and owners of the natural clients that are kept."""
    if raw.clients is None:
        raise InputError(
            f"data set {raw.name!r} without partition: it has no natural clients; give partition, "
            "e.g. dirichlet(30, alpha=0.5) or contiguous(20) for text, or the client of a file"
        )
    check_whole(min_samples, "min_client_samples", "1 keeps every client")
    ids, index, count = np.unique(raw.clients, return_inverse=True, return_counts=True)
    keep = np.flatnonzero(count >= min_samples)
    if num_clients is not None:
        check_whole(num_clients, "num_clients", "leave it out to keep all")
        keep = keep[np.argsort(-count[keep], kind="stable")][:num_clients]
    wanted = 1 if num_clients is None else num_clients
    require(
        len(keep) >= wanted,
        f"num_clients = {wanted}, min_client_samples = {min_samples}",
        f"{raw.name} has {len(keep)} such clients of {len(ids)}",
        "ask for fewer clients or fewer samples",
    )
    rows = np.isin(index, keep)
    if raw.test_clients is None:
        test = np.ones(len(raw.test_y), bool)
        owners = None
    else:
        if test_others is None:
            test_others = not np.isin(raw.test_clients, ids).any()
        test = np.isin(raw.test_clients, ids[keep]) | test_others
        owners = raw.test_clients[test]
    return {
        # Nothing is copied if everybody stays: the samples may lie in a file.
        "x": raw.x if rows.all() else jax.tree.map(lambda a: a[rows], raw.x),
        "y": raw.y[rows],
        "test_x": raw.test_x if test.all() else jax.tree.map(lambda a: a[test], raw.test_x),
        "test_y": raw.test_y[test],
        "clients": raw.clients[rows],
        "test_clients": owners,
    }
