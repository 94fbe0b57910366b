"""Differential privacy of clients with a clipping norm that follows a quantile of the norms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk
from fedjax_het.contract.uploads import Upload
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.privacy import mechanism
from fedjax_het.transforms.sending import uploading


class Limit(NamedTuple):
    """The clipping norm of a step, and what the clients told about it.

    Attributes:
      clip: largest norm of an update, float32.
      within: number of updates that were no longer, float32.
      sent: number of updates, float32.
    """

    clip: jax.Array
    within: jax.Array
    sent: jax.Array


@checked
def adaptive_clip(
    *,
    noise: float,
    quantile: float = 0.5,
    clip: float = 0.1,
    clip_learning_rate: float = 0.2,
    bit_noise: float | None = None,
    delta: float | None = None,
) -> Transformation:
    r"""Central noise as `gaussian`, with a clipping norm C that is learned under the same epsilon.

    With every update comes a bit, whether its norm was at most C. The server adds noise of the
    deviation `bit_noise` to the number of these bits, divides by the number m of updates to the
    share b, and takes $C \leftarrow C \exp(-\eta (b - \gamma))$ for the next step. The updates get
    noise of $z_\Delta C$ with $z_\Delta = (z^{-2} - (2 \sigma_b)^{-2})^{-1/2}$, so that updates and
    bits together have the multiplier z = `noise`. What `gaussian` says holds here as well.

    Args:
      noise: multiplier z of updates and bits together, at least 0; without noise the bits have
        none either.
      quantile: share gamma of the updates that shall not be clipped, in [0, 1].
      clip: first clipping norm.
      clip_learning_rate: step size eta of the norm's logarithm.
      bit_noise: standard deviation sigma_b of the noise in the number of bits, above z / 2; None
        for a twentieth of the cohort that the method has when this is composed.
      delta: probability for which epsilon holds; None for n^-1.1 with n clients.

    References:
      Andrew et al., *Differentially Private Learning with Adaptive Clipping*, NeurIPS 2021,
      Algorithm 1 and Theorem 1; the defaults are theirs.
    """
    require(np.isfinite(clip) and clip > 0, f"clip = {clip}", "must be a positive norm", "use 0.1")
    mechanism.require_noise(noise, delta)
    require(0 <= quantile <= 1, f"quantile = {quantile}", "must lie in [0, 1]", "use 0.5")
    require(
        np.isfinite(clip_learning_rate) and clip_learning_rate > 0,
        f"clip_learning_rate = {clip_learning_rate}",
        "must be positive and finite",
        "use 0.2",
    )

    def transformation(algorithm: Algorithm) -> Algorithm:
        bits = algorithm.cohort_size / 20 if bit_noise is None else bit_noise
        require(
            noise == 0 or bits > noise / 2,
            f"bit_noise = {bits} with noise = {noise}",
            "must be above noise / 2: the bits alone may not tell more than updates and bits do",
            f"use {noise:g}, or larger cohorts",
        )
        upload = _upload(noise, quantile, clip, clip_learning_rate, bits, delta)
        options: dict[str, Any] = {"noise": noise, "quantile": quantile, "clip": clip}
        options |= {"clip_learning_rate": clip_learning_rate, "bit_noise": bits, "delta": delta}
        return uploading(upload, "privacy", **options)(algorithm)

    return transformation


def _upload(
    noise: float,
    quantile: float,
    first: float,
    learning_rate: float,
    bits: float,
    delta: float | None,
) -> Upload:
    """The upload of `adaptive_clip`."""
    deviation = (noise**-2 - (2 * bits) ** -2) ** -0.5 if noise else 0.0

    def keep(variables: Any, num_clients: int) -> Limit:
        del variables, num_clients
        return Limit(jnp.float32(first), jnp.float32(0.0), jnp.float32(0.0))

    def renew(kept: Limit, key: jax.Array) -> Limit:
        within = kept.within + (bits * jax.random.normal(key) if noise else 0.0)
        share = within / jnp.maximum(kept.sent, 1.0)
        moved = kept.clip * jnp.exp(-learning_rate * (share - quantile))
        return Limit(jnp.where(kept.sent > 0, moved, kept.clip), jnp.float32(0.0), jnp.float32(0.0))

    def change(kept: Limit, chunk: Chunk) -> tuple[Limit, Chunk]:
        chunk, norms = mechanism.clipped(mechanism.equal(chunk), kept.clip)
        within = jnp.sum(chunk.weight * (norms <= kept.clip).astype(jnp.float32))
        sent = kept.sent + jnp.sum(chunk.weight)
        return kept._replace(within=kept.within + within, sent=sent), chunk

    def noises(kept: Limit, params: PyTree, key: jax.Array) -> PyTree:
        return mechanism.normal(params, key, deviation * kept.clip)

    return Upload(
        name="privacy.adaptive_clip",
        change=change,
        keep=keep,
        renew=renew,
        noise=noises if noise else None,
        told=mechanism.telling(noise, delta, central=True),
        check=mechanism.checking("privacy.adaptive_clip", central=True),
        bounds=True,
    )
