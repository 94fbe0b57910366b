r"""Merge rules for layers that a random part of the clients finishes, and checks of their bias.

$\mathcal U^\ell$ are the clients that finished layer $\ell$, $K$ is their number and $U$ the number
of all clients. $q_u^\ell$ is the probability that client u misses the layer, and
$p^\ell = \prod_u q_u^\ell$ that all clients do. A layer that no client finished keeps its value.
Otherwise

====================  ====================================================  =====================
rule                  step of layer $\ell$                                  expectation
====================  ====================================================  =====================
``corrected``         $\frac{1}{1-p} \frac1K \sum_{\mathcal U} \Delta_u$    $\bar\Delta$ (equal q)
``ipw``               $\frac1U \sum_{\mathcal U} \Delta_u / (1 - q_u)$      $\bar\Delta$
``zero_fill``         $\frac1U \sum_{\mathcal U} \Delta_u$                  $(1 - q) \bar\Delta$
``mean``              $\frac1K \sum_{\mathcal U} \Delta_u$                  $(1 - p) \bar\Delta$
====================  ====================================================  =====================

The authors' code implements ``zero_fill``; the paper states ``corrected``.
"""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator
from fedjax_het.contract.paces import Paces

Rule = Literal["corrected", "ipw", "zero_fill", "mean"]

# The probabilities of the corrections are those of the deadline in the plan.
OWN_DEADLINE = Paces(replace="its deadline decides how many layers a client sends")


class LayerMerge(NamedTuple):
    """A rule of the table above, as a weighted sum of updates over a divisor.

    Attributes:
      rule: name of the rule.
      floor: smallest divisor of `ipw`; a value above 0 reduces variance and adds bias.

    References:
      ADEL-FL, arXiv 2505.23973, and SALF, arXiv 2403.18375 (their correction); `ipw` is the
      Horvitz-Thompson estimator, an extension for clients of different rates
      (methods/adel_fl.md 2.1, 2.3, 2.5, A1).
    """

    rule: Rule
    floor: float = 0.0

    def divisor(self, finished: Any, chance: Any, clients: Any) -> Any:
        """Divisor of the weighted sum, for NumPy and traced arrays of one shape.

        Args:
          finished: number of clients that finished the layer, K.
          chance: probability that at least one client finishes it, 1 - p.
          clients: number of clients in the round, U.
        """
        if self.rule == "corrected":
            return finished * chance
        return finished if self.rule == "mean" else clients

    def factors(self, missed: np.ndarray) -> np.ndarray | None:
        """Factors of the updates in the sum, float32[k, L]; None if all are 1.

        Args:
          missed: probability q that each client misses each layer, float64[k, L].
        """
        if self.rule != "ipw":
            return None
        reached = np.maximum(1.0 - missed, self.floor)
        # A layer that a client cannot reach has weight 0, not infinity.
        inverse = np.divide(1.0, reached, out=np.zeros_like(reached), where=missed < 1.0)
        return inverse.astype(np.float32)

    def inputs(self, missed: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values that `aggregator` needs of the probabilities of a round.

        Args:
          missed: probability q that each client misses each layer, float64[k, L].

        Returns:
          Entries of `Plan.rows` (leading axis k) and of `Plan.shared`, float32.
        """
        factors = self.factors(missed)
        rows = {} if factors is None else {"inverse_propensity": factors}
        chance = (1.0 - np.prod(missed, axis=0)).astype(np.float32)
        return rows, {"merge_probability": chance, "clients": np.float32(len(missed))}

    def aggregator(self, ids: PyTree) -> Aggregator:
        """The rule as a streaming merge, which reads the values of `inputs`.

        Args:
          ids: layer of each tensor, `Layers.ids`.
        """

        def propensity(row: PyTree, shared: PyTree) -> PyTree:
            del shared
            # Exit heads (-1) are never trained, so their entry has no effect.
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
        """Weight of each client's update in each layer, times the number of clients.

        In an unbiased merge its average over rounds tends to one for every client and layer.

        Args:
          missed: probability q that each client misses each layer, float64[k, L].
          depth: number of layers that each client finished, int64[k].

        Returns:
          Weights float64[k, L].
        """
        k, layers = missed.shape
        weight = (np.arange(layers) >= layers - depth[:, None]).astype(np.float64)
        over = self.divisor(weight.sum(axis=0), 1.0 - np.prod(missed, axis=0), float(k))
        factors = self.factors(missed)
        if factors is not None:
            weight *= factors
        return weight * np.divide(k, over, out=np.zeros(layers), where=np.asarray(over) > 0)


def layer_merge(aggregator: Rule | None, floor: float, unbiased: Rule) -> LayerMerge:
    """The merge by a rule.

    Args:
      aggregator: name of the rule; None for `unbiased`.
      floor: smallest divisor, `propensity_floor` of the methods.
      unbiased: name of the rule that is unbiased for the probabilities of these clients.
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
    """Counts over the rounds so far, which show whether the merge is unbiased.

    Attributes:
      rounds: int64[], number of rounds.
      missed: int64[L], number of rounds in which no client finished the layer.
      seen: int64[n], number of rounds in which each client took part.
      weight: float64[n, L], sum of the weights of each client's updates in each layer; see
        `LayerMerge.weights`.
    """

    rounds: np.ndarray
    missed: np.ndarray
    seen: np.ndarray
    weight: np.ndarray

    def add(
        self, clients: np.ndarray, merge: LayerMerge, missed: np.ndarray, depth: np.ndarray
    ) -> "Tally":
        """The counts after one more round.

        Args:
          clients: ids of the cohort, int64[k].
          merge: merge of the round.
          missed: assumed probabilities of a miss, float64[k, L].
          depth: number of layers of each client that reached the server, int64[k].
        """
        layers = missed.shape[1]
        nobody = layers - np.max(depth) > np.arange(layers)
        seen, weight = self.seen.copy(), self.weight.copy()
        seen[clients] += 1
        weight[clients] += merge.weights(missed, depth)
        return Tally(np.asarray(self.rounds + 1), self.missed + nobody, seen, weight)

    def summary(self, merge_probability: np.ndarray) -> dict[str, Any]:
        """Records of the last counted round; arrays over layers, input side first.

        Args:
          merge_probability: probability 1 - p as assumed in that round, float[L].

        Returns:
          The records `miss_assumed` (p of this round), `miss_observed` (share of rounds so far),
          and `update_weight`, the mean weight of a client's update so far: 1 if the merge is
          unbiased, 0.5 if a layer moves half as far as it should.
        """
        known = self.seen > 0
        each = self.weight[known] / self.seen[known, None]
        return {
            "miss_assumed": 1.0 - np.asarray(merge_probability, np.float64),
            "miss_observed": self.missed / np.maximum(self.rounds, 1),
            "update_weight": np.mean(each, axis=0),
        }


def empty_tally(clients: int, layers: int) -> Tally:
    """Counts before the first round."""
    return Tally(
        np.zeros((), np.int64),
        np.zeros(layers, np.int64),
        np.zeros(clients, np.int64),
        np.zeros((clients, layers)),
    )
