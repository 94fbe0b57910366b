"""Data sets by name, `load("mnist", data_dir)`, and files of one's own, `load("csv", path=...)`.

Files of the sets by name are looked for in `data_dir/<name>/` and in `data_dir` itself; `data_dir`
defaults to the environment variable `FEDJAX_HET_DATA`, and contents are checked against their
published SHA-256. Nothing is unpickled, and nothing is downloaded but by the library of `hub`.
"""

from collections.abc import Callable
from typing import Any

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options, parameters
from fedjax_het.data.sources.audio import speech_commands
from fedjax_het.data.sources.files import DataDir
from fedjax_het.data.sources.images import cifar10, digits, fashion_mnist, femnist, mnist, quickdraw
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers import READERS
from fedjax_het.data.sources.tables import diabetes, flights, yeast
from fedjax_het.data.sources.text import shakespeare, tinyshakespeare
from fedjax_het.data.sources.tfds import tfds

_SETS: tuple[Callable[..., RawData], ...] = (
    cifar10,
    diabetes,
    digits,
    fashion_mnist,
    femnist,
    flights,
    mnist,
    quickdraw,
    shakespeare,
    speech_commands,
    tfds,
    tinyshakespeare,
    yeast,
)
SOURCES: dict[str, Callable[..., RawData]] = {
    f.__name__.removeprefix("read_"): f for f in (*_SETS, *READERS)
}
# Options that say where files are, and nothing of what is in them.
PLACES = ("data_dir", "images", "path", "test", "test_path", "train")


def load(name: str, data_dir: DataDir = None, **options: Any) -> RawData:
    """Reads a data set.

    Args:
      name: name of the data set or of a format, a key of `SOURCES`.
      data_dir: directory with the files of a set by name; default the environment variable
        `FEDJAX_HET_DATA`.
      **options: options of the source, e.g. `window` for text, or `path` for a file.

    Raises:
      InputError: for an unknown name or option, and for missing, truncated or altered files.
    """
    require_known(name, SOURCES, "data set")
    source = SOURCES[name]
    if "data_dir" in parameters(source):
        options = {"data_dir": data_dir, **options}
    else:
        require(
            data_dir is None,
            f"data_dir = {data_dir!r} for {name!r}",
            "is of the sets by name",
            "leave it out, and give the complete path of the file",
        )
    check_options(options, f"option of data set {name!r}", source)
    return source(**options)


__all__ = ["PLACES", "READERS", "SOURCES", "RawData", "load"]
