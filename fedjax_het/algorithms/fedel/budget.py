r"""What a client may spend, what its tensors cost it, and what the clock charges.

Everything is in FLOPs per sample on the client's own device. With $s_i$ the slowdown of device i
against the fastest and C the full model, client i may spend `threshold` $\cdot C / s_i$.
"""

from typing import Literal, NamedTuple

import numpy as np

from fedjax_het.algorithms.fedel.tensors import Chain, TensorTimes, chain_cost
from fedjax_het.common.errors import require, require_known
from fedjax_het.contract.plan import Situation, Timing
from fedjax_het.problem import Problem

Accounting = Literal["backward", "total"]

# A profile is taken once per device, before the first round.
_PROFILE_SEED = 20_509


class Bill(NamedTuple):
    """What the chosen tensors cost.

    Attributes:
      timing: as charged on the virtual clock; `flops` is the true work.
      ratio: float64[k], charged compute over the budget.
      true_ratio: float64[k], the same with the forward pass, on the scale of a full step.
    """

    timing: Timing
    ratio: np.ndarray
    true_ratio: np.ndarray


class Budget:
    """Prices and limits of all clients.

    Args:
      problem: model, data and fleet.
      times: the model's tensors.
      threshold: T_th over the time of the fastest device's full step.
      accounting: "backward": as in the paper, time is the time of tensors, so forward passes are
        free; the clock charges a task the share of a full step that its backward pass has in the
        full backward pass. "total": forward passes are paid for and charged.
      chain: see `TensorTimes.chain`.
      bandwidth_aware: adds the upload of a tensor to its price, and that of the whole model over
        the fastest link to the budget.
      profile_noise: clients plan with prices wrong by a factor in `1 -+ profile_noise`, drawn per
        device and tensor.

    Attributes:
      times: as given.
      window_threshold: float64[n], what the new blocks of a window must add up to: the share of
        the full backward pass that the device affords.
    """

    def __init__(
        self,
        problem: Problem,
        times: TensorTimes,
        threshold: float,
        accounting: Accounting,
        chain: Chain,
        bandwidth_aware: bool,
        profile_noise: float,
    ):
        require(threshold > 0, f"threshold = {threshold}", "must be positive", "use 1")
        require_known(accounting, ("backward", "total"), "budget")
        require_known(chain, ("exclusive", "inclusive"), "chain")
        require(
            0 <= profile_noise < 1,
            f"profile_noise = {profile_noise}",
            "must lie in [0, 1)",
            "use 0.2 for profiles that are off by up to 20 %",
        )
        self.times = times
        self._problem, self._accounting, self._chain = problem, accounting, chain
        self._bandwidth_aware = bandwidth_aware
        cost = problem.cost
        speed = problem.fleet.flops_per_s
        self._share = threshold * speed / np.max(speed)
        self.window_threshold = self._share * times.total
        self._forward = np.cumsum(cost.forward_flops) + cost.exit_forward_flops
        self._head = cost.exit_weight_grad_flops + cost.exit_input_grad_flops
        self._step = float(cost.step_flops())
        # FLOPs of time that the upload of a byte takes.
        self._per_byte = speed / problem.fleet.uplink_bytes_per_s
        self._error = np.ones((1, times.num_tensors))
        if profile_noise:
            rng = np.random.default_rng(_PROFILE_SEED)
            shape = (problem.num_clients, times.num_tensors)
            self._error = rng.uniform(1 - profile_noise, 1 + profile_noise, shape)

    def prices(
        self, clients: np.ndarray, samples: np.ndarray, exit: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the clients plan with.

        Args:
          clients: int64[k].
          samples: int64[k], samples of the round, over which an upload is spread.
          exit: int64[k], last block of each window.

        Returns:
          `(t_w float64[k, K], chain float64[k, K], room float64[k])`; `room` is what is left for
          tensors and may be negative.
        """
        times, error = self.times, self._error
        error = (
            error[clients]
            if len(error) > 1
            else np.broadcast_to(error, (len(clients), times.num_tensors))
        )
        weight = times.weight * error
        chain = chain_cost(times.through * error, times.block, exit, self._chain)
        room = self._allowance(clients) - self._head[exit]
        if self._accounting == "total":
            room = room - self._forward[exit]
        if self._bandwidth_aware:
            per_byte = self._per_byte[clients] / samples
            weight = weight + per_byte[:, None] * times.size_bytes
            room = room + self._upload_allowance(clients, samples)
            room = room - per_byte * self._problem.cost.exit_param_bytes[exit]
        return weight, chain, room

    def bill(
        self,
        clients: np.ndarray,
        samples: np.ndarray,
        chosen: np.ndarray,
        exit: np.ndarray,
        situation: Situation,
    ) -> Bill:
        """Charges the chosen tensors at their true prices.

        Args:
          clients: int64[k].
          samples: int64[k].
          chosen: bool[k, K].
          exit: int64[k].
          situation: for the jitter of the durations.
        """
        cost, times = self._problem.cost, self.times
        backward = times.cost(chosen, exit, self._chain) + self._head[exit]
        true = times.cost(chosen, exit, "exclusive") + self._head[exit] + self._forward[exit]
        charged = true if self._accounting == "total" else backward * self._step / times.total
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
        full = self.times.total if self._accounting == "backward" else self._step
        return self._share[clients] * full

    def _upload_allowance(self, clients: np.ndarray, samples: np.ndarray) -> np.ndarray:
        fleet = self._problem.fleet
        whole_s = np.sum(self.times.size_bytes) / np.max(fleet.uplink_bytes_per_s)
        return whole_s * fleet.flops_per_s[clients] / samples
