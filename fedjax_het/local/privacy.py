r"""Privacy of the activations that a client sends: distance correlation and shuffling.

The distance correlation of raw samples x and their activations z is a part of the loss:

dCov^2(x, z) = 1/n^2 sum_ij A_ij B_ij         A, B: doubly centred matrices of distances
dCor(x, z)   = dCov(x, z) / sqrt(dVar(x) dVar(z)),   dVar(x) = dCov(x, x)

Shuffling permutes patches or channels of z, with another permutation for every sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import check_types
from fedjax_het.models.base import BlockModel

Shuffle = Literal["none", "space", "channel"]
# Roots have no gradient at zero, as for equal samples and constant activations.
_EPS = 1e-9


@dataclass(frozen=True)
class Privacy:
    """Options of the protection of the clients' samples.

    Attributes:
      dcor: weight of the distance correlation in the client's loss, in [0, 1]; one value, or one
        per client.
      squared: whether the distance correlation has squared distances, as in DTFL's code.
      shuffle: permuted parts of the activations: "none", "space" (patches of the map) or "channel"
        (as in DTFL's code).
      patch: side of the patches for `shuffle="space"`; the default 4 is our choice.

    References:
      methods/dtfl.md 10.
    """

    dcor: float | Sequence[float] = 0.0
    squared: bool = False
    shuffle: Shuffle = "none"
    patch: Size = 4

    def __post_init__(self) -> None:
        check_types(vars(self), "privacy option", type(self))
        shares = np.asarray(self.dcor)
        require(
            bool(np.all((shares >= 0) & (shares <= 1))),
            f"privacy.dcor = {self.dcor}",
            "must be a share in [0, 1]",
            "use 0 for none, or 0.25",
        )
        require(self.patch >= 1, f"privacy.patch = {self.patch}", "must be at least 1", "use 4")

    @property
    def correlates(self) -> bool:
        """Whether the loss of any client has a distance correlation."""
        return bool(np.any(self.dcor))

    def weights(self, num_clients: int) -> np.ndarray:
        """Weight of the distance correlation in each client's loss, float32[n]."""
        weights = np.asarray(self.dcor, np.float32)
        require(
            weights.shape in ((), (num_clients,)),
            f"privacy.dcor = {self.dcor}",
            f"must be one number, or one for each of the {num_clients} clients",
            "use 0 for none, or 0.25",
        )
        return np.broadcast_to(weights, (num_clients,))

    def require_usable(self, model: BlockModel) -> None:
        """Raises `InputError` unless the options fit the samples and activations of the model."""
        inputs = [part.dtype for part in jax.tree.leaves(model.input_shapes(1))]
        require(
            not self.correlates or (len(inputs) == 1 and jnp.issubdtype(inputs[0], jnp.floating)),
            f"privacy.dcor with model {model.name!r} of {', '.join(map(str, inputs))} inputs",
            "the distance of two samples is that of their numbers, which symbols are not",
            "set privacy.dcor = 0",
        )
        flat = [z.shape for z in model.activation_shapes(1)[:-1] if len(z.shape) != 4]
        require(
            self.shuffle != "space" or not flat,
            f"privacy.shuffle = 'space' with activations of shapes {flat}",
            "needs maps [height, width, channels] after every block",
            "use privacy.shuffle = 'channel'",
        )

    def sent(self, key: jax.Array, z: jax.Array) -> jax.Array:
        """The activations that the server gets for `z`, `[n, ...]`."""
        if self.shuffle == "channel":
            return shuffle_channels(key, z)
        return shuffle_patches(key, z, self.patch) if self.shuffle == "space" else z


def distance_correlation(
    x: jax.Array, z: jax.Array, weight: jax.Array | None = None, *, squared: bool = False
) -> jax.Array:
    """Distance correlation of paired samples, differentiable everywhere.

    Args:
      x: samples `[n, ...]`.
      z: activations of these samples `[n, ...]`.
      weight: weight of each pair, float32[n], 0 for padding; None for ones.
      squared: whether distances are squared, as in DTFL's code, or not (Szekely et al. 2007;
        NoPeek).

    Returns:
      The correlation, float32 scalar in [0, 1]; 0 if x or z is constant.

    References:
      Szekely, Rizzo, Bakirov, *Measuring and testing dependence by correlation of distances*, 2007;
      Vepakomma et al., *NoPeek*, 2020; methods/dtfl.md 10.
    """
    weight = jnp.ones((x.shape[0],), jnp.float32) if weight is None else weight
    share = weight / jnp.maximum(jnp.sum(weight), 1.0)
    a, b = _centred(x, share, squared), _centred(z, share, squared)
    pairs = share[:, None] * share[None, :]

    def covariance(p: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.maximum(jnp.sum(pairs * p * q), 0.0) + _EPS)

    return covariance(a, b) / jnp.sqrt(covariance(a, a) * covariance(b, b) + _EPS)


def _centred(x: jax.Array, share: jax.Array, squared: bool) -> jax.Array:
    """Doubly centred distances `[n, n]` under the weights `share`."""
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    norm = jnp.sum(jnp.square(x), axis=1)
    inner = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    d = jnp.maximum(norm[:, None] + norm[None, :] - 2.0 * inner, 0.0)
    if not squared:
        # The second `where` keeps the infinite derivative at zero out of the gradient.
        far = d > _EPS
        d = jnp.where(far, jnp.sqrt(jnp.where(far, d, 1.0)), 0.0)
    row = d @ share
    return d - row[:, None] - row[None, :] + jnp.sum(row * share)


def shuffle_patches(key: jax.Array, z: jax.Array, patch: Size = 4) -> jax.Array:
    """Permutes the square patches of every sample's map.

    The size of a patch is the largest common divisor of `patch` and both sides, so that patches
    tile the map.

    Args:
      key: typed PRNG key.
      z: maps `[n, height, width, channels]`.
      patch: largest side of a patch.
    """
    n, height, width, channels = z.shape
    side = next(s for s in range(patch, 0, -1) if height % s == 0 and width % s == 0)
    rows, columns = height // side, width // side
    tiles = z.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    tiles = _permute(key, tiles.reshape(n, rows * columns, -1))
    tiles = tiles.reshape(n, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(z.shape)


def shuffle_channels(key: jax.Array, z: jax.Array) -> jax.Array:
    """Permutes the channels (last axis) of every sample, as the code of DTFL does."""
    flat = z.reshape(z.shape[0], -1, z.shape[-1])
    return _permute(key, flat.transpose(0, 2, 1)).transpose(0, 2, 1).reshape(z.shape)


def _permute(key: jax.Array, z: jax.Array) -> jax.Array:
    """Permutes the second axis, independently for every entry of the first."""
    keys = jax.random.split(key, z.shape[0])
    order = jax.vmap(lambda k: jax.random.permutation(k, z.shape[1]))(keys)
    return jnp.take_along_axis(z, order[:, :, None], axis=1)
