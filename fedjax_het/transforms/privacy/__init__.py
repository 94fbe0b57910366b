"""Privacy of the clients as transformations of methods: noise, its epsilon, and sums only.

`mechanism` holds what the Gaussian mechanisms share, `accounting` their epsilon.
"""

from collections.abc import Callable

from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.privacy.accounting import epsilon
from fedjax_het.transforms.privacy.adaptive import adaptive_clip
from fedjax_het.transforms.privacy.gaussian import gaussian
from fedjax_het.transforms.privacy.secure import secure_aggregation

__all__ = ["PRIVACY", "adaptive_clip", "epsilon", "gaussian", "secure_aggregation"]

# Factories of transformations by name.
PRIVACY: dict[str, Callable[..., Transformation]] = {
    "adaptive_clip": adaptive_clip,
    "gaussian": gaussian,
    "secure_aggregation": secure_aggregation,
}
