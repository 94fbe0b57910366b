r"""Budgets of the clients, prices of their tensors, and the times of the virtual clock.

All amounts are FLOPs per sample on the client's own device. With $s_i$ the slowdown of device i
against the fastest and C the cost of the full model, the budget is `threshold` $\cdot C / s_i$.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fedjax_het.algorithms.fedel.tensors import Chain, TensorTimes, chain_cost
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types
from fedjax_het.contract.plan import Situation, Timing
from fedjax_het.problem import Problem

# Devices are profiled once, before the first round.
_PROFILE_SEED = 20_509
# Largest resolution of the selection, a table of tensors by parts of the budget.
_MOST_BUCKETS = 1_000_000


@dataclass(frozen=True)
class Budget:
    """Options of the budget that the paper does not state (methods/fedel.md 1.3, 1.5, 2.3).

    Attributes:
      counts: work that counts. "backward": as in the paper, the backward pass of tensors, so
        forward passes are free. The clock charges a task the share of a full step that its backward
        pass has in the full backward pass. "total": forward passes count too, and are charged.
      chain: convention of the path of the gradient to a tensor, see `TensorTimes.chain`.
      buckets: resolution of the selection, number of parts of the budget.
    """

    counts: Literal["backward", "total"] = "backward"
    chain: Chain = "exclusive"
    buckets: int = 1000

    def __post_init__(self) -> None:
        check_types(vars(self), "option of budget", type(self))
        value = f"budget.buckets = {self.buckets}"
        limit = f"must be at least 1 and at most {_MOST_BUCKETS}, for each has a row of a table"
        require(1 <= self.buckets <= _MOST_BUCKETS, value, limit, "use 1000")


class Prices(NamedTuple):
    """Prices from which k clients choose tensors, in FLOPs per sample.

    Attributes:
      weight: float64[k, K], price t_w of each tensor.
      chain: float64[k, K], price of the gradient's path to each tensor; inf after the exit.
      room: float64[k], rest of the budget for tensors; may be negative.
    """

    weight: np.ndarray
    chain: np.ndarray
    room: np.ndarray


class Bill(NamedTuple):
    """Costs of the chosen tensors.

    Attributes:
      timing: timing on the virtual clock; `flops` is the true work.
      ratio: float64[k], charged compute over the budget.
      true_ratio: float64[k], true compute, with the forward pass, over the budget on the scale of
        a full step.
    """

    timing: Timing
    ratio: np.ndarray
    true_ratio: np.ndarray


class Accounts:
    """Prices and budgets of all clients.

    Args:
      problem: model, data and fleet.
      times: tensors of the model and their prices.
      threshold: budget T_th over the time of the fastest device's full step.
      budget: options of the budget.
      bandwidth_aware: whether a tensor's price includes its upload, and the budget the upload of
        the whole model over the fastest link.
      profile_noise: largest relative error of the prices from which clients choose, drawn per
        device and tensor.

    Attributes:
      times: tensors of the model and their prices.
      window_threshold: float64[n], smallest backward time of the new blocks of a window: the share
        of the full backward pass that the device affords.
    """

    def __init__(
        self,
        problem: Problem,
        times: TensorTimes,
        threshold: float = 1.0,
        budget: Budget = Budget(),
        *,
        bandwidth_aware: bool = False,
        profile_noise: float = 0.0,
    ):
        self.times = times
        self._problem, self._budget, self._bandwidth_aware = problem, budget, bandwidth_aware
        cost = problem.cost
        speed = problem.fleet.flops_per_s
        self._share = threshold * speed / np.max(speed)
        self.window_threshold = self._share * times.total
        self._forward = np.cumsum(cost.forward_flops) + cost.exit_forward_flops
        self._head = cost.exit_weight_grad_flops + cost.exit_input_grad_flops
        self._step = float(cost.step_flops())
        # The upload time of a byte, in FLOPs.
        self._per_byte = speed / problem.fleet.uplink_bytes_per_s
        self._error = np.ones((1, times.num_tensors))
        if profile_noise:
            rng = np.random.default_rng(_PROFILE_SEED)
            shape = (problem.num_clients, times.num_tensors)
            self._error = rng.uniform(1 - profile_noise, 1 + profile_noise, shape)

    def prices(self, clients: np.ndarray, samples: np.ndarray, exit: np.ndarray) -> Prices:
        """Prices from which the clients choose.

        Args:
          clients: ids of the clients, int64[k].
          samples: samples of the round, over which the price of an upload is spread, int64[k].
          exit: last block of each window, int64[k].
        """
        times, error = self.times, self._error
        error = (
            error[clients]
            if len(error) > 1
            else np.broadcast_to(error, (len(clients), times.num_tensors))
        )
        weight = times.weight * error
        chain = chain_cost(times.through * error, times.block, exit, self._budget.chain)
        capacity = self._allowance(clients) - self._head[exit]
        if self._budget.counts == "total":
            capacity = capacity - self._forward[exit]
        if self._bandwidth_aware:
            per_byte = self._per_byte[clients] / samples
            weight = weight + per_byte[:, None] * times.size_bytes
            capacity = capacity + self._upload_allowance(clients, samples)
            capacity = capacity - per_byte * self._problem.cost.exit_param_bytes[exit]
        return Prices(weight, chain, capacity)

    def bill(
        self,
        clients: np.ndarray,
        samples: np.ndarray,
        chosen: np.ndarray,
        exit: np.ndarray,
        situation: Situation,
    ) -> Bill:
        """Costs of the chosen tensors at their true prices.

        Args:
          clients: ids of the clients, int64[k].
          samples: samples of the round, int64[k].
          chosen: mask of the chosen tensors, bool[k, K].
          exit: last block of each window, int64[k].
          situation: time of dispatch, and generator of the jitter.
        """
        cost, times = self._problem.cost, self.times
        backward = times.cost(chosen, exit, self._budget.chain) + self._head[exit]
        true = times.cost(chosen, exit, "exclusive") + self._head[exit] + self._forward[exit]
        total = self._budget.counts == "total"
        charged = true if total else backward * self._step / times.total
        size = chosen @ times.size_bytes + cost.exit_param_bytes[exit]
        if cost.uploads_stats:
            size = size + times.blocks_of(chosen) @ cost.stats_bytes
        timing = self._problem.fleet.timing(
            clients,
            charged * samples,
            cost.download_bytes(),
            size,
            situation.now_s,
            situation.rng,
        )
        full = self._share[clients] * self._step
        return Bill(timing._replace(flops=true * samples), charged / full, true / full)

    def _allowance(self, clients: np.ndarray) -> np.ndarray:
        full = self.times.total if self._budget.counts == "backward" else self._step
        return self._share[clients] * full

    def _upload_allowance(self, clients: np.ndarray, samples: np.ndarray) -> np.ndarray:
        fleet = self._problem.fleet
        whole_s = np.sum(self.times.size_bytes) / np.max(fleet.uplink_bytes_per_s)
        return whole_s * fleet.flops_per_s[clients] / samples
