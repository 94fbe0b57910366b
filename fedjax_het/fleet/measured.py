"""Measured prices of a sub-network, from those of the complete network."""

from dataclasses import fields
from typing import Any

import numpy as np

from fedjax_het.fleet.cost import CostTable


def scaled_like(given: CostTable, own: CostTable, whole: CostTable) -> CostTable:
    """Measured prices `given` of the complete network, scaled by the analytic ones of a level."""

    def of(name: str) -> Any:
        value, a, b = (getattr(table, name) for table in (given, own, whole))
        if not isinstance(value, np.ndarray):
            return value
        ratio = np.where(b > 0, a / np.maximum(b, 1), 1.0)
        return (value * ratio).astype(value.dtype)

    return CostTable(**{column.name: of(column.name) for column in fields(CostTable)})
