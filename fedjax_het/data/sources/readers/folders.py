"""Images in folders: by class, by client, by split; or listed in a file with their clients."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, read_file
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.delimited import csv_table
from fedjax_het.data.sources.readers.encode import samples
from fedjax_het.data.sources.readers.pictures import decoded
from fedjax_het.data.sources.readers.splits import by_word, held_out
from fedjax_het.data.sources.readers.targets import labels_of
from fedjax_het.data.sources.readers.text import CORRECT, full_path, name_of

Level = Literal["split", "client", "class"]
# Images that are read; other files in the folders are errors, hidden ones are not looked at.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_FILES = 10**7
_SPLITS = {"train", "training", "test", "testing"}


def read_image_folder(
    path: AnyPath,
    levels: Sequence[Level] | None = None,
    *,
    size: Sequence[int] | None = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """Folders of images, by Pillow (extra `files`); the names of the folders say what they hold.

    `path/<client>/<class>/*.png`, `path/<class>/*.png`, both also below `train` and `test`. Images
    become uint8 [H, W, C], grey ones with C = 1 if all are grey, else 3.

    Args:
      path: the outermost folder.
      levels: meaning of the folders from the outermost to the innermost, of `"split"`, `"client"`
        and `"class"`; None for split (if the outermost are named train and test), then client (if
        there are two more levels), then class.
      size: pair (height, width) to which images are resized; None for images of one size.
      test_fraction: share of the images of each client that are test images; 0.2 if nothing else
        says which are.
      test_clients: clients whose images are all test images.

    Raises:
      InputError: for folders of unequal depth, and for files that are no images.
    """
    root = full_path(path)
    require(root.is_dir(), str(root), "must be a directory of images", "name one")
    files = _images_below(root)
    parts = [file.relative_to(root).parts[:-1] for file in files]
    depth = len(parts[0])
    odd = next((i for i, part in enumerate(parts) if len(part) != depth), None)
    if odd is not None:
        raise InputError(
            f"{files[odd]}: is {len(parts[odd])} folders deep: must be {depth}, as {files[0]}; "
            "move it"
        )
    found = _levels({part[0] for part in parts} if depth else set(), depth, root)
    levels = found if levels is None else list(levels)
    require(
        len(levels) == depth and len(set(levels)) == depth and "class" in levels,
        f"levels = {levels} for images that are {depth} folders deep",
        "must name each folder above an image once, 'class' among them",
        "e.g. levels = ('client', 'class')",
    )
    columns = {level: np.array([part[i] for part in parts]) for i, level in enumerate(levels)}
    owner, place = columns.get("client"), lambda i: str(files[i])
    given = by_word(columns["split"], place) if "split" in columns else None
    held = held_out(len(files), owner, given, test_fraction, test_clients, str(root))
    labels = labels_of(columns["class"], held, place)
    x = decoded([partial(read_file, file, CORRECT) for file in files], place, size)
    return samples(root.resolve().name, x, labels, held, owner)


def _levels(outermost: set[str], depth: int, root: Path) -> list[Level]:
    """The meaning of the folders by their number and names."""
    split: list[Level] = ["split"] if {name.lower() for name in outermost} <= _SPLITS else []
    rest: dict[int, list[Level]] = {1: ["class"], 2: ["client", "class"]}
    if depth - len(split) not in rest:
        raise InputError(
            f"{root}: images {depth} folders deep: must be in <class>, <client>/<class>, or these "
            "below train and test; arrange the folders so"
        )
    return [*split, *rest[depth - len(split)]]


def _images_below(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.startswith("."):
                continue
            file = Path(folder, name)
            require(
                file.suffix.lower() in SUFFIXES,
                str(file),
                f"must be an image ({' '.join(SUFFIXES)})",
                "move it out of the folder",
            )
            files.append(file)
        require(len(files) <= MAX_FILES, str(root), f"holds over {MAX_FILES} files", "split it")
    require(bool(files), str(root), "holds no image", "name a folder of images")
    return files


def read_mapping(
    path: AnyPath,
    images: AnyPath | None = None,
    *,
    test_path: AnyPath | None = None,
    size: Sequence[int] | None = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """FedScale's mapping of clients to images: client_id, sample_path, label_name, label_id.

    Args:
      path: CSV file with these columns; label_name may be missing.
      images: directory to which the sample paths are relative; None for that of the file.
      test_path: mapping of the test images, or None.
      size: pair (height, width) to which images are resized; None for images of one size.
      test_fraction: share of the images of each client that are test images; 0.2 if nothing else
        says which are.
      test_clients: clients whose images are all test images.

    Raises:
      InputError: for files that are missing or cannot be used; the message names the line.
    """
    root = full_path(path).parent if images is None else full_path(images)
    table = csv_table(path, test_path)
    owner = table.ids("client_id", "client")
    held = held_out(table.rows, owner, table.held, test_fraction, test_clients, table.where)
    column = "label_name" if "label_name" in table.columns else "label_id"
    labels = labels_of(table.ids(column, "label"), held, table.row)
    files = [root / name for name in table.ids("sample_path", "image").astype(str).tolist()]
    absent = next((i for i, file in enumerate(files) if not file.is_file()), None)
    if absent is not None:
        number = sum(not file.is_file() for file in files)
        raise table.wrong(
            absent,
            f"sample_path {table.ids('sample_path', 'image')[absent]!s}",
            f"is no file in {root} ({number} of {len(files)} are not)",
            "say images = the directory that holds them",
        )
    x = decoded([partial(read_file, file, CORRECT) for file in files], table.row, size)
    return samples(name_of(full_path(path)), x, labels, held, owner)
