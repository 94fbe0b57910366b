"""Modules that depend on the number of their channels are refused before a run."""

import flax.linen as nn
import jax
import pytest
from flax import nnx
from problems import digits_problem

from fedjax_het.algorithms.networks import networks
from fedjax_het.common.errors import InputError
from fedjax_het.models import from_flax, layout_of
from fedjax_het.models.agreement import require_agreement, require_scalable
from fedjax_het.models.lstm import char_lstm
from fedjax_het.problem import Problem


class Divides(nn.Module):
    """Divides by the number of its channels, as attention does by the root of it."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(12)(x))
        return nn.Dense(10)(y / y.shape[-1])


class Normalises(nn.Module):
    """The norms of flax know which channels there are."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.LayerNorm()(nn.Dense(12)(x)))
        y = nn.relu(nn.GroupNorm(2)(nn.Dense(16)(y)))
        return nn.Dense(10)(nn.RMSNorm()(y))


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 12, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.second = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.norm(self.first(x))))


def problem(module):
    given = digits_problem()
    return Problem(from_flax(module, (64,), 10), given.data, given.fleet)


def test_a_network_that_divides_by_its_width_is_refused():
    with pytest.raises(InputError, match="number of its channels"):
        networks(problem(Divides()), (1.0, 0.5))


def test_norms_of_flax_agree():
    own = networks(problem(Normalises()), (1.0, 0.5))
    assert own.counts[1] == {group: size // 2 for group, size in own.layout.sizes.items()}


def test_norms_of_nnx_agree():
    own = networks(problem(lambda rngs: Nnx(rngs=rngs)), (1.0, 0.25))
    assert list(own.counts[1].values()) == [3]


class Shortcut(nn.Module):
    """Projects only if the widths differ, which they do not where both keep one unit."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        y = nn.relu(nn.Dense(16)(x))
        if x.shape != y.shape:
            x = nn.Dense(16)(x)
        return nn.Dense(10)(x + y)


def test_a_layer_that_cannot_be_scaled_is_refused_at_once():
    model = char_lstm((5,), 10, embedding=4, units=8)
    layout = layout_of(model)
    counts = {group: size // 2 for group, size in layout.sizes.items()}
    with pytest.raises(InputError, match="train it without a scaler"):
        require_scalable(model, layout, counts)


def test_every_width_is_tried():
    own = problem(Shortcut())
    networks(own, (1.0, 0.5))
    with pytest.raises(InputError, match=r"number of its channels|cannot run at another width"):
        networks(own, (1.0, 0.5, 1 / 16))


def test_the_check_is_made_once(monkeypatch):
    model = from_flax(Normalises(), (64,), 10)
    layout = layout_of(model)
    counts = {group: size // 2 for group, size in layout.sizes.items()}
    require_agreement(model, layout, counts)
    monkeypatch.setattr(jax.random, "key", None)
    require_agreement(model, layout, counts)
