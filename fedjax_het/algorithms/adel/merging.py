r"""How layers are merged that only some clients finished, by chance.

$\mathcal U^\ell$ are the clients that finished layer $\ell$, $K$ their number, $U$ that of all,
$q_u^\ell$ the probability that client u misses the layer and $p^\ell = \prod_u q_u^\ell$ that
everyone does. A layer that nobody finished keeps its value. Otherwise

====================  ====================================================  =====================
rule                  step of layer $\ell$                                  expectation
====================  ====================================================  =====================
``corrected``         $\frac{1}{1-p} \frac1K \sum_{\mathcal U} \Delta_u$    $\bar\Delta$ (equal q)
``ipw``               $\frac1U \sum_{\mathcal U} \Delta_u / (1 - q_u)$      $\bar\Delta$
``zero_fill``         $\frac1U \sum_{\mathcal U} \Delta_u$                  $(1 - q) \bar\Delta$
``mean``              $\frac1K \sum_{\mathcal U} \Delta_u$                  $(1 - p) \bar\Delta$
====================  ====================================================  =====================

``zero_fill`` is what the authors' code does; the paper claims ``corrected``.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator

Rule = Literal["corrected", "ipw", "zero_fill", "mean"]


def merge_rule(rule: Rule, ids: PyTree) -> Aggregator:
    """The rule as a streaming merge; expects what `merge_inputs` makes.

    Args:
      rule: one of the table above.
      ids: `Layers.ids`.

    References:
      ADEL-FL, arXiv 2505.23973, and SALF, arXiv 2403.18375 (their correction); `ipw` is the
      Horvitz-Thompson estimator, an extension for clients of different rates.
    """

    def per_tensor(values: jax.Array) -> PyTree:
        # Exit heads (-1) are never trained; any entry will do for them.
        return jax.tree.map(lambda i: values[i], ids)

    def contributors(terms: dict[str, PyTree], shared: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, terms["weight"], per_tensor(shared["merge_probability"]))

    def everyone(terms: dict[str, PyTree], shared: PyTree) -> PyTree:
        del terms
        return shared["clients"]

    def propensity(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        return per_tensor(row["inverse_propensity"])

    if rule == "corrected":
        return masked_mean(divide_by=contributors)
    if rule == "ipw":
        return masked_mean(factor=propensity, divide_by=everyone)
    if rule == "zero_fill":
        return masked_mean(divide_by=everyone)
    return masked_mean()


def merge_inputs(
    rule: Rule, missed: np.ndarray, propensity_floor: float = 0.0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a rule needs to know about the chances of this round.

    Args:
      rule: the merge rule.
      missed: float64[k, L], q: probability that each client misses each layer.
      propensity_floor: `ipw` divides by no less than this; above 0 it trades bias for variance.

    Returns:
      Entries of `Plan.rows` (leading axis k) and of `Plan.shared`.
    """
    shared = {
        "merge_probability": (1.0 - np.prod(missed, axis=0)).astype(np.float32),
        "clients": np.float32(len(missed)),
    }
    if rule != "ipw":
        return {}, shared
    reached = np.maximum(1.0 - missed, propensity_floor)
    # A layer that a client cannot reach has no weight, rather than an infinite one.
    inverse = np.divide(1.0, reached, out=np.zeros_like(reached), where=missed < 1.0)
    return {"inverse_propensity": inverse.astype(np.float32)}, shared


def merge_weights(rule: Rule, missed: np.ndarray, depth: np.ndarray, floor: float) -> np.ndarray:
    """The weight with which each client's update entered each layer, times the number of clients.

    Unbiased means that its average over rounds tends to one for every client and layer.

    Args:
      rule: the merge rule.
      missed: float64[k, L], q.
      depth: int64[k], layers finished.
      floor: `propensity_floor`.

    Returns:
      float64[k, L].
    """
    k, count = missed.shape
    took_part = (np.arange(count) >= count - depth[:, None]).astype(np.float64)
    if rule == "zero_fill":
        return took_part
    if rule == "ipw":
        return took_part * merge_inputs(rule, missed, floor)[0]["inverse_propensity"]
    mean = took_part * k / np.maximum(np.sum(took_part, axis=0), 1.0)
    if rule == "mean":
        return mean
    some = 1.0 - np.prod(missed, axis=0)
    return np.divide(mean, some, out=np.zeros_like(mean), where=some > 0)
