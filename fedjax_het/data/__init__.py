"""Federated data: sources, partitions, and mini-batches inside the compiled program."""

from fedjax_het.data.attackers import flip_labels
from fedjax_het.data.batches import Batch, DeviceData, Pipeline, gather, prepare, steps_per_epoch
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import (
    PARTITIONERS,
    contiguous,
    dirichlet,
    iid,
    label_limited,
    natural,
    partitioner,
    quantity_skew,
    shards,
)
from fedjax_het.data.sources import SOURCES, RawData, load
from fedjax_het.data.sources.readers import (
    read_csv,
    read_hub,
    read_image_folder,
    read_jsonl,
    read_leaf,
    read_mapping,
    read_npy,
    read_npz,
    read_parquet,
    read_text_matrix,
    read_tff_h5,
)

__all__ = [
    "PARTITIONERS",
    "SOURCES",
    "Batch",
    "DeviceData",
    "FederatedData",
    "Pipeline",
    "RawData",
    "contiguous",
    "dirichlet",
    "flip_labels",
    "from_arrays",
    "gather",
    "iid",
    "label_limited",
    "load",
    "load_federated",
    "natural",
    "partitioner",
    "prepare",
    "quantity_skew",
    "read_csv",
    "read_hub",
    "read_image_folder",
    "read_jsonl",
    "read_leaf",
    "read_mapping",
    "read_npy",
    "read_npz",
    "read_parquet",
    "read_text_matrix",
    "read_tff_h5",
    "shards",
    "steps_per_epoch",
]
