"""All transformations by kind and name, for configurations."""

from collections.abc import Callable

from fedjax_het.transforms import attack, robust, select
from fedjax_het.transforms.compose import Transformation

_KINDS = {
    "attack": attack.ATTACKS,
    "robust": robust.ROBUST,
    "select": select.SELECTIONS,
}

# Factories of transformations, e.g. "select.oort".
TRANSFORMATIONS: dict[str, Callable[..., Transformation]] = {
    f"{kind}.{name}": factory
    for kind, factories in _KINDS.items()
    for name, factory in factories.items()
}
