"""Data sets by name: `load("mnist", data_dir)`.

Files are looked for in `data_dir/<name>/` and in `data_dir` itself; `data_dir` defaults to the
environment variable `FEDJAX_HET_DATA`. Nothing is downloaded and nothing is unpickled; contents are
checked against their published SHA-256.
"""

from collections.abc import Callable
from typing import Any

from fedjax_het.common.errors import require_known
from fedjax_het.common.options import check_options
from fedjax_het.data.sources.audio import speech_commands
from fedjax_het.data.sources.files import DataDir
from fedjax_het.data.sources.images import cifar10, digits, fashion_mnist, femnist, mnist, quickdraw
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.tables import diabetes, flights, yeast
from fedjax_het.data.sources.text import shakespeare, tinyshakespeare
from fedjax_het.data.sources.tfds import tfds

SOURCES: dict[str, Callable[..., RawData]] = {
    f.__name__: f
    for f in (
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
}


def load(name: str, data_dir: DataDir = None, **options: Any) -> RawData:
    """Reads a data set.

    Args:
      name: name of the data set, a key of `SOURCES`.
      data_dir: directory with the files; default the environment variable `FEDJAX_HET_DATA`.
      **options: options of the source, e.g. `window` for text.

    Raises:
      InputError: for an unknown name or option, and for missing, truncated or altered files.
    """
    require_known(name, SOURCES, "data set")
    source = SOURCES[name]
    options = {"data_dir": data_dir, **options}
    check_options(options, f"option of data set {name!r}", source)
    return source(**options)


__all__ = ["SOURCES", "RawData", "load"]
