r"""Distance correlation between raw samples and what is sent of them.

dCov^2(x, z) = 1/n^2 sum_ij A_ij B_ij         A, B: doubly centred matrices of distances
dCor(x, z)   = dCov(x, z) / sqrt(dVar(x) dVar(z)),   dVar(x) = dCov(x, x)
"""

import jax
import jax.numpy as jnp

# Roots have no gradient at zero: equal samples, and constant activations.
_EPS = 1e-9


def distance_correlation(
    x: jax.Array, z: jax.Array, weight: jax.Array | None = None, *, squared: bool = False
) -> jax.Array:
    """Distance correlation of paired samples, differentiable everywhere.

    Args:
      x: `[n, ...]`.
      z: `[n, ...]`.
      weight: float32[n], 0 for padding; None for ones.
      squared: takes squared Euclidean distances, as DTFL's code does, in place of distances
        (Szekely et al. 2007; NoPeek).

    Returns:
      float32 scalar in [0, 1]; 0 where either side is constant.

    References:
      Szekely, Rizzo, Bakirov, *Measuring and testing dependence by correlation of distances*, 2007;
      Vepakomma et al., *NoPeek*, 2020; DTFL, section on privacy.
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
        # The second `where` keeps the infinite slope at zero out of the gradient.
        far = d > _EPS
        d = jnp.where(far, jnp.sqrt(jnp.where(far, d, 1.0)), 0.0)
    row = d @ share
    return d - row[:, None] - row[None, :] + jnp.sum(row * share)
