"""Secure aggregation as cost: bytes, seconds and operations of the protocol of Bonawitz et al."""

import math

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.uploads import Upload
from fedjax_het.problem import Problem
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.sending import uploading

# Messages of a client in either direction besides its update and the model.
_FURTHER_MESSAGES = 3


@checked
def secure_aggregation(
    *,
    value_bits: Count = 32,
    key_bytes: Count = 32,
    share_bytes: Count = 32,
    mask_flops: float = 50.0,
) -> Transformation:
    r"""Prices a protocol by which the server learns the sum of the updates and nothing else.

    It changes no number and hides nothing in the simulation; it adds to every task what the
    protocol for honest but curious parties costs among the k clients of the cohort, if all answer:

    ==================  ==========================  ======================================
    round               client sends                client receives
    ==================  ==========================  ======================================
    advertise keys      2 keys                      2 (k - 1) keys
    share keys          2 (k - 1) shares            2 (k - 1) shares
    masked input        m numbers of b bits         list of the clients left (not counted)
    unmasking           k shares
    ==================  ==========================  ======================================

    That is $2 k a_K + (5 k - 4) a_S + m b$ in all, the paper's total. The m numbers are those that
    the client sends anyway; a sum of k values of `value_bits` needs $b$ = `value_bits` +
    $\lceil \log_2 k \rceil$ bits. Rounding to them is not simulated. Clients that train different
    parts of the model mask what they have in common (our choice: the paper has vectors of equal
    length), so a coordinate that one client alone trains is not hidden. Three more messages each
    way take the latency of a transfer, and every number is masked by k pseudo-random ones.

    It comes last. Compression before it is refused, because masks fill all coordinates, and so are
    rules that look at single updates, and paces without a cohort that ends.

    Args:
      value_bits: bits of a number of the update in fixed point, 1 to 32.
      key_bytes: bytes a_K of a public key; 32 for Curve25519.
      share_bytes: bytes a_S of an encrypted share.
      mask_flops: operations for a pseudo-random number and its addition (our assumption, for AES in
        software); 0 prices the messages only.

    References:
      Bonawitz et al., *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS
      2017, Figure 4 and section 7.1.
    """
    require(
        1 <= value_bits <= 32,
        f"value_bits = {value_bits}",
        "must be 1 to 32 bits: numbers of the update have no more",
        "use 32, or 16 as the paper",
    )
    for name, size in (("key_bytes", key_bytes), ("share_bytes", share_bytes)):
        require(size >= 1, f"{name} = {size}", "must be at least 1 byte", "use 32")
    require(
        0 <= mask_flops < math.inf,
        f"mask_flops = {mask_flops}",
        "must be finite and at least 0",
        "use 50, or 0 to price messages only",
    )

    def price(timing: Timing, count: int) -> Timing:
        numbers = timing.bytes_up // 4
        bits = value_bits + math.ceil(math.log2(count))
        masked = -(-numbers * bits // 8)
        sent = 2 * key_bytes + (3 * count - 2) * share_bytes + masked
        received = 2 * (count - 1) * (key_bytes + share_bytes) + timing.bytes_down
        moved = timing.moving(bytes_up=sent, bytes_down=received)
        flops = timing.flops + mask_flops * count * numbers
        wait_s = 0.0 if timing.latency_s is None else _FURTHER_MESSAGES * timing.latency_s
        return moved._replace(
            download_s=moved.download_s + wait_s,
            compute_s=timing.compute_s * flops / np.maximum(timing.flops, 1.0),
            upload_s=moved.upload_s + wait_s,
            flops=flops,
        )

    def change(kept: PyTree, chunk: Chunk) -> tuple[PyTree, Chunk]:
        return kept, chunk

    def check(algorithm: Algorithm, problem: Problem) -> None:
        del problem
        require(
            not algorithm.pace.may_wait,
            f"privacy.secure_aggregation with the pace {algorithm.pace.name} of {algorithm.name}",
            "is a protocol among the clients of one round, who are known when it begins",
            "use a pace that ends its rounds, e.g. the barrier of fedavg",
        )
        require(
            algorithm.cohort_size > 1,
            f"privacy.secure_aggregation with clients_per_round = {algorithm.cohort_size}",
            "needs at least 2 clients: the sum of one is its update",
            "use larger cohorts",
        )

    upload = Upload(
        "privacy.secure_aggregation", change, price=price, check=check, fills=True, hides=True
    )
    return uploading(
        upload,
        "secure_aggregation",
        value_bits=value_bits,
        key_bytes=key_bytes,
        share_bytes=share_bytes,
        mask_flops=mask_flops,
    )
