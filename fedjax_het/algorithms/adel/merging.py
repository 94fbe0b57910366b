r"""How layers are merged that only some clients finished, by chance; and whether it is unbiased.

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

from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator

Rule = Literal["corrected", "ipw", "zero_fill", "mean"]


class LayerMerge(NamedTuple):
    """A rule of the table above, as a weighted sum of updates over a divisor.

    Attributes:
      rule: which rule.
      floor: least probability that `ipw` divides by; above 0 it trades bias for variance.

    References:
      ADEL-FL, arXiv 2505.23973, and SALF, arXiv 2403.18375 (their correction); `ipw` is the
      Horvitz-Thompson estimator, an extension for clients of different rates
      (methods/adel_fl.md 2.1, 2.3, 2.5, A1).
    """

    rule: Rule
    floor: float = 0.0

    def divisor(self, finished: Any, chance: Any, clients: Any) -> Any:
        """What the weighted sum is divided by, for NumPy and traced arrays of one shape.

        Args:
          finished: number of clients that finished the layer, K.
          chance: probability that anyone does, 1 - p.
          clients: number of clients in the round, U.
        """
        if self.rule == "corrected":
            return finished * chance
        return finished if self.rule == "mean" else clients

    def factors(self, missed: np.ndarray) -> np.ndarray | None:
        """What each update is multiplied by in the sum, float32[k, L]; None for 1.

        Args:
          missed: q, float64[k, L]: probability that each client misses each layer.
        """
        if self.rule != "ipw":
            return None
        reached = np.maximum(1.0 - missed, self.floor)
        # A layer that a client cannot reach has no weight, rather than an infinite one.
        inverse = np.divide(1.0, reached, out=np.zeros_like(reached), where=missed < 1.0)
        return inverse.astype(np.float32)

    def inputs(self, missed: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `aggregator` needs to know about the chances of a round.

        Args:
          missed: q, float64[k, L].

        Returns:
          Entries of `Plan.rows` (leading axis k) and of `Plan.shared`, float32.
        """
        factors = self.factors(missed)
        rows = {} if factors is None else {"inverse_propensity": factors}
        chance = (1.0 - np.prod(missed, axis=0)).astype(np.float32)
        return rows, {"merge_probability": chance, "clients": np.float32(len(missed))}

    def aggregator(self, ids: PyTree) -> Aggregator:
        """The rule as a streaming merge; reads what `inputs` makes.

        Args:
          ids: layer of each tensor, `Layers.ids`.
        """

        def propensity(row: PyTree, shared: PyTree) -> PyTree:
            del shared
            # Exit heads (-1) are never trained; any entry will do for them.
            return jax.tree.map(lambda i: row["inverse_propensity"][i], ids)

        def divide_by(terms: dict[str, PyTree], shared: PyTree) -> PyTree:
            chance, clients = shared["merge_probability"], shared["clients"]
            return jax.tree.map(
                lambda finished, i: self.divisor(finished, chance[i], clients),
                terms["weight"],
                ids,
            )

        return masked_mean(factor=propensity if self.rule == "ipw" else None, divide_by=divide_by)

    def weights(self, missed: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The weight with which each client's update enters each layer, times the clients' number.

        Unbiased means that its average over rounds tends to one for every client and layer.

        Args:
          missed: q, float64[k, L].
          depth: number of layers that each client finished, int64[k].

        Returns:
          float64[k, L].
        """
        k, layers = missed.shape
        weight = (np.arange(layers) >= layers - depth[:, None]).astype(np.float64)
        over = self.divisor(weight.sum(axis=0), 1.0 - np.prod(missed, axis=0), float(k))
        factors = self.factors(missed)
        if factors is not None:
            weight *= factors
        return weight * np.divide(k, over, out=np.zeros(layers), where=np.asarray(over) > 0)


def layer_merge(aggregator: Rule | None, floor: float, unbiased: Rule) -> LayerMerge:
    """The merge that was asked for.

    Args:
      aggregator: rule; None takes the one that is unbiased.
      floor: `propensity_floor` of the methods.
      unbiased: the rule without bias for the chances of these clients.
    """
    require(
        0 <= floor < 1,
        f"propensity_floor = {floor}",
        "must lie in [0, 1)",
        "use 0 for an unbiased merge, 0.1 for a steadier one",
    )
    if aggregator is None:
        return LayerMerge(unbiased, floor)
    require_known(aggregator, ("corrected", "ipw", "zero_fill", "mean"), "aggregator")
    return LayerMerge(aggregator, floor)


class Tally(NamedTuple):
    """Counts over the rounds so far; they show whether the merge is as unbiased as it should be.

    Attributes:
      rounds: int64[].
      missed: int64[L], rounds in which nobody finished the layer.
      seen: int64[n], rounds in which each client took part.
      weight: float64[n, L], sum of the weights with which its updates entered each layer; see
        `LayerMerge.weights`.
    """

    rounds: np.ndarray
    missed: np.ndarray
    seen: np.ndarray
    weight: np.ndarray

    def add(
        self, clients: np.ndarray, merge: LayerMerge, missed: np.ndarray, depth: np.ndarray
    ) -> "Tally":
        """The counts with those of one more round.

        Args:
          clients: ids of the cohort, int64[k].
          merge: the rule.
          missed: assumed chances of a miss, float64[k, L].
          depth: number of layers of each client that reached the server, int64[k].
        """
        layers = missed.shape[1]
        nobody = layers - np.max(depth) > np.arange(layers)
        seen, weight = self.seen.copy(), self.weight.copy()
        seen[clients] += 1
        weight[clients] += merge.weights(missed, depth)
        return Tally(np.asarray(self.rounds + 1), self.missed + nobody, seen, weight)

    def summary(self, merge_probability: np.ndarray) -> dict[str, Any]:
        """The records of the last round that was counted, arrays over layers, input side first.

        Args:
          merge_probability: 1 - p as assumed in that round, float[L].

        Returns:
          `miss_assumed` (p of this round), `miss_observed` (share of rounds so far), and
          `update_weight`: the mean weight of a client's update so far, 1 if the merge is unbiased,
          0.5 if a layer moves half as far as it should.
        """
        known = self.seen > 0
        each = self.weight[known] / self.seen[known, None]
        return {
            "miss_assumed": 1.0 - np.asarray(merge_probability, np.float64),
            "miss_observed": self.missed / np.maximum(self.rounds, 1),
            "update_weight": np.mean(each, axis=0),
        }


def empty_tally(clients: int, layers: int) -> Tally:
    """Nothing counted yet."""
    return Tally(
        np.zeros((), np.int64),
        np.zeros(layers, np.int64),
        np.zeros(clients, np.int64),
        np.zeros((clients, layers)),
    )
