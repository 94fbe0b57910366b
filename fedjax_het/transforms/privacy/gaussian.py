"""Differential privacy of clients by clipping and Gaussian noise."""

import math

import jax

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk
from fedjax_het.contract.uploads import Upload
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.privacy import mechanism
from fedjax_het.transforms.sending import uploading


@checked
def gaussian(
    *, clip: Unlimited, noise: float, delta: float | None = None, central: bool = True
) -> Transformation:
    r"""DP-FedAvg: updates of bounded norm, and Gaussian noise.

    Every update is scaled to the Euclidean norm C = `clip` at most, over all that the client sends;
    coordinates that it does not train count as zero. Then noise of the standard deviation `noise` C
    is added,

    * central: once to every coordinate of the sum of the updates, by a server that is trusted. All
      clients have equal weights, which bounds what one adds to the sum; the mean is taken as
      the method takes it, over the clients that train a coordinate.
    * local: by each client to every coordinate that it trains, before it sends its update; the
      method merges as before.

    The step's row has `epsilon` after the step and `delta`. The unit of privacy is one client with
    all its samples; see `accounting.epsilon` for the neighbours. Amplification by sampling is
    claimed for the sum only, and only if cohorts are drawn uniformly from all clients, who are
    always available. Otherwise every client counts as taking part in every step. A method whose
    cohorts, tasks or arrivals follow from what clients hold or tell (a selection other than the
    uniform one, `observe`, overlapping tasks) has `epsilon_updates` in its place, which says
    nothing of what those reveal. No noise has infinite epsilon, None in the records, and without
    limit and noise the method stays as it is, with its own weights.

    What it covers: the model and everything computed from the updates. The counts by which a sum
    over sub-models is divided are public, because masks and routes follow from devices and
    schedules; so are the numbers of samples, from which durations and with them the arrivals before
    a deadline follow. Not covered:

    * masks that follow from data, as those of FedEL (importances) or of HeteroFL (labels);
    * whether an update was finite, because others are left out of the counts;
    * with local noise, the numbers of samples by which a method weighs its clients;
    * what clients tell besides updates: losses for Oort, scores for TiFL, importances. A method
      that learns from any of these, and one whose plans look at its state, has `epsilon_updates` in
      place of `epsilon`, which holds for the updates alone;
    * the simulation itself: float32 noise of a generator that is not cryptographic.

    Args:
      clip: largest norm C of an update; inf for no limit, without noise only.
      noise: standard deviation of the noise over C, at least 0.
      delta: probability for which epsilon holds; None for n^-1.1 with n clients.
      central: whether the server adds the noise; False for every client.

    References:
      McMahan et al., *Learning Differentially Private Recurrent Language Models*, ICLR 2018,
      Algorithm 1 (per-user clipping, uniform weights), with cohorts of a fixed size.
    """
    require(clip > 0, f"clip = {clip}", "must be a positive norm", "try 0.1 to 1")
    mechanism.require_noise(noise, delta)
    require(
        math.isfinite(clip) or noise == 0,
        f"clip = {clip} with noise = {noise}",
        "must be finite: the noise is a multiple of it",
        "try 0.1 to 1, or noise = 0",
    )

    def change(kept: PyTree, chunk: Chunk) -> tuple[PyTree, Chunk]:
        chunk, _ = mechanism.clipped(chunk, clip)
        if central:
            return kept, mechanism.equal(chunk)
        return kept, mechanism.noised(chunk, noise * clip) if noise else chunk

    def noises(kept: PyTree, params: PyTree, key: jax.Array) -> PyTree:
        del kept
        return mechanism.normal(params, key, noise * clip)

    upload = Upload(
        name="privacy.gaussian",
        change=change,
        noise=noises if noise and central else None,
        told=mechanism.telling(noise, delta, central=central),
        check=mechanism.checking("privacy.gaussian", central=central),
        contracts=central or noise == 0,
        bounds=central,
        fills=bool(noise) and not central,
    )
    adding = uploading(upload, "privacy", clip=clip, noise=noise, delta=delta, central=central)

    def transformation(algorithm: Algorithm) -> Algorithm:
        return algorithm if math.isinf(clip) else adding(algorithm)

    return transformation
