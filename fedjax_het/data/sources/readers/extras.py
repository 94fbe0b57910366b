"""Libraries of file formats, which are imported when a file of the format is read."""

import importlib
from types import ModuleType

from fedjax_het.common.errors import InputError


def library(name: str, extra: str, reads: object) -> ModuleType:
    """A module of an extra of the package.

    Args:
      name: name of the module.
      extra: extra that installs it.
      reads: file or format that needs it, for the error message.

    Raises:
      InputError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{reads}: is read by the package {name.split('.')[0]}, which cannot be imported "
            f"({error}); run: pip install 'fedjax-het[{extra}]'"
        ) from None
