"""Readers of files in people's formats: each makes a `RawData` of what a file holds.

Tables with named columns, of whatever format, become a `Table`, and `encode` makes samples of its
columns; the other formats hold arrays. What says which samples are test samples, and what becomes
of labels, is the same for all (`splits`, `targets`).
"""

from collections.abc import Callable

from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.delimited import read_csv
from fedjax_het.data.sources.readers.folders import read_image_folder, read_mapping
from fedjax_het.data.sources.readers.hub import read_hub
from fedjax_het.data.sources.readers.jsonlines import read_jsonl
from fedjax_het.data.sources.readers.leaf import read_leaf
from fedjax_het.data.sources.readers.matrices import read_text_matrix
from fedjax_het.data.sources.readers.npy import read_npy
from fedjax_het.data.sources.readers.npz import read_npz
from fedjax_het.data.sources.readers.parquet import read_parquet
from fedjax_het.data.sources.readers.tff import read_tff_h5

READERS: tuple[Callable[..., RawData], ...] = (
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
    "READERS",
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
]
