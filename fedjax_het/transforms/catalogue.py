"""All transformations by kind and name, for configurations."""

from collections.abc import Callable

from fedjax_het.transforms import attack, compress, pace, privacy, robust, select, server
from fedjax_het.transforms.compose import Transformation

_KINDS = {
    "attack": attack.ATTACKS,
    "compress": compress.COMPRESSIONS,
    "pace": pace.PACES,
    "privacy": privacy.PRIVACY,
    "robust": robust.ROBUST,
    "select": select.SELECTIONS,
    "server": server.SERVER,
}

# Factories of transformations, e.g. "select.oort".
TRANSFORMATIONS: dict[str, Callable[..., Transformation]] = {
    f"{kind}.{name}": factory
    for kind, factories in _KINDS.items()
    for name, factory in factories.items()
}
