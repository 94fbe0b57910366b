"""Prices of sub-models: exact against the published table, cheaper when smaller."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.cost import cost_table, price
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.profile import xla_flops
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import leaf_cnn, pfl_cnn
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import mlp


class Normed(nn.Module):
    """Dense and BatchNorm: a block with running statistics."""

    features: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(self.features)(x))


class Embed(nn.Module):
    """Tokens in."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(nn.Embed(11, 5)(x))


class Relu(nn.Module):
    """No parameters."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(x)


def normed(policy="mean"):
    blocks = (
        flax_block("a", Normed(6)),
        flax_block("relu", Relu()),
        flax_block("b", nn.Dense(3)),
    )
    return BlockModel("normed", blocks, (4,), 3, stats_policy=policy)


@pytest.fixture(scope="module")
def cnn():
    return cost_table(leaf_cnn())


@pytest.fixture(scope="module")
def exits():
    return cost_table(with_exits(leaf_cnn((8, 8, 1), 10, hidden=16)))


def test_fedpmt_table(cnn):
    # methods/fedpmt.md 6; depth d trains the blocks L - d .. L - 1.
    assert cnn.names == ("conv1", "conv2", "fc1", "fc2")
    np.testing.assert_array_equal(cnn.param_count, [832, 51_264, 1_606_144, 5_130])
    flops = [1_254_400, 20_070_400, 3_211_264, 10_240]
    for column in (cnn.forward_flops, cnn.weight_grad_flops, cnn.input_grad_flops):
        np.testing.assert_array_equal(column, flops)
    first = np.array([3, 2, 1, 0])
    step = cnn.step_flops(first, 3)
    np.testing.assert_array_equal(step, [24_556_544, 27_778_048, 51_059_712, 72_384_512])
    np.testing.assert_array_equal(
        step - cnn.forward_pass_flops(), [10_240, 3_231_744, 26_513_408, 47_838_208]
    )
    np.testing.assert_allclose(step / step[-1], [0.3393, 0.3838, 0.7054, 1.0], atol=5e-5)
    sent = cnn.upload_bytes(first, 3)
    np.testing.assert_array_equal(sent, 4 * np.array([5_130, 1_611_274, 1_662_538, 1_663_370]))
    np.testing.assert_allclose(sent / sent[-1], [0.0031, 0.9687, 0.9995, 1], atol=5e-5)
    assert cnn.download_bytes() == 4 * 1_663_370


def test_valid_convolutions_cost_the_same_in_all_three_passes():
    table = cost_table(pfl_cnn((10, 10, 3), 4))
    np.testing.assert_array_equal(table.forward_flops, table.weight_grad_flops)
    np.testing.assert_array_equal(table.forward_flops, table.input_grad_flops)
    assert table.forward_flops[0] == 2 * 8 * 8 * 3 * 32 * 9


def test_a_smaller_sub_model_is_strictly_cheaper(exits):
    for exit in range(4):
        first = np.arange(exit + 1)
        assert (np.diff(exits.step_flops(first, exit)) < 0).all()
        assert (np.diff(exits.upload_bytes(first, exit)) < 0).all()
        assert (np.diff(exits.memory_bytes(first, exit, 8)) < 0).all()
    # The head after fc1 and fc2 are the same layer here, so leaving there saves nothing.
    for start in range(3):
        assert (np.diff(exits.step_flops(start, np.arange(start, 3))) > 0).all()
        assert exits.step_flops(start, 2) == exits.step_flops(start, 3)


def test_step_is_the_sum_of_its_parts(exits):
    t = exits
    head = t.exit_forward_flops[1] + t.exit_weight_grad_flops[1] + t.exit_input_grad_flops[1]
    want = t.forward_flops[:2].sum() + t.weight_grad_flops[1] + head
    assert t.step_flops(1, 1) == want
    want = t.forward_flops[:2].sum() + t.weight_grad_flops[:2].sum() + t.input_grad_flops[1] + head
    assert t.step_flops(0, 1) == want
    # Exit heads: mean over space, then 32 or 64 or 16 channels to 10 classes.
    np.testing.assert_array_equal(t.exit_forward_flops, [640, 1280, 320, 0])
    np.testing.assert_array_equal(t.exit_param_count, [330, 650, 170, 0])
    assert t.upload_bytes(1, 1) == t.param_bytes[1] + 4 * 650
    assert t.download_bytes() == t.param_bytes.sum() + 4 * (330 + 650 + 170)


def test_further_heads_are_added_to_the_sub_model(exits):
    t, heads = exits, np.array([True, True, False, False])
    # Three contractions each, of 32 and of 64 channels with 10 classes.
    assert t.step_flops(0, 2, heads) == t.step_flops(0, 2) + 3 * (640 + 1280)
    assert t.upload_bytes(0, 2, heads) == t.upload_bytes(0, 2) + 4 * (330 + 650)
    assert t.held_bytes(2, heads) == t.param_bytes[:3].sum() + 4 * (330 + 650 + 170)
    assert t.held_bytes(0) == t.param_bytes[0] + 4 * 330
    assert t.held_bytes(3, np.array([True, True, True, False])) == t.download_bytes()
    more = t.exit_stored_bytes[:2].sum()
    assert t.memory_bytes(0, 2, 8, 1, heads) == (
        t.memory_bytes(0, 2, 8, 1) + 3 * 4 * (330 + 650) + 8 * more
    )
    # One row of heads for each sub-model.
    rows = np.array([[False] * 4, [True, False, False, False]])
    np.testing.assert_array_equal(
        t.step_flops(0, np.array([0, 3]), rows),
        [t.step_flops(0, 0), t.step_flops(0, 3) + 3 * 640],
    )
    with pytest.raises(InputError, match="before the exit only"):
        t.step_flops(0, 1, heads)
    with pytest.raises(InputError, match="before the exit only"):
        t.step_flops(1, 2, heads)
    with pytest.raises(InputError, match="with exit heads"):
        cost_table(mlp((4,), 2, hidden=(3,))).upload_bytes(0, 1, np.array([True, False]))


def test_further_heads_of_one_shared_head_weigh_nothing():
    t = cost_table(with_exits(mlp((4,), 2, hidden=(3, 3, 3)), shared=True))
    heads = np.array([True, True, False, False])
    assert t.upload_bytes(0, 2, heads) == t.upload_bytes(0, 2)
    own = t.held_bytes(3) + 4 * (3 * 2 + 2)  # the network's own head is in its last block
    assert t.held_bytes(3, heads) == own == t.download_bytes()
    assert t.step_flops(0, 2, heads) == t.step_flops(0, 2) + 2 * 3 * (2 * 3 * 2)


class Counted(nn.Module):
    """A layer that counts its traces by width."""

    features: int

    @nn.compact
    def __call__(self, x):
        TRACED.append(self.features)
        return nn.relu(nn.Dense(self.features)(x))


TRACED: list[int] = []


def test_equal_blocks_are_priced_once():
    def table(*widths):
        layers = [flax_block(f"layer{b}", Counted(width)) for b, width in enumerate(widths)]
        model = BlockModel("deep", (*layers, flax_block("head", nn.Dense(3))), (6,), 3)
        model.activation_shapes(1)
        TRACED.clear()
        found = cost_table(model)
        return found, {width: TRACED.count(width) for width in widths}

    (one, once), (four, repeated) = table(6), table(6, 6, 6, 6)
    # Apart from the shapes between the blocks, which are asked for block by block.
    assert repeated[6] == once[6] + 3
    for name in ("forward_flops", "weight_grad_flops", "input_grad_flops", "stored_bytes"):
        np.testing.assert_array_equal(getattr(four, name)[:4], getattr(one, name)[[0, 0, 0, 0]])
    # The same layer on another input is another block: 6 -> 5 and 5 -> 5.
    narrow, _ = table(5, 5)
    assert narrow.forward_flops[:2].tolist() == [2 * 6 * 5, 2 * 5 * 5]


class Keeps(nn.Module):
    """A layer with an attribute that cannot be compared."""

    factors: np.ndarray

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(x * self.factors)


def test_blocks_that_cannot_be_compared_are_priced_one_by_one():
    layers = [flax_block(name, Keeps(np.ones((1, 6), np.float32))) for name in "ab"]
    model = BlockModel("kept", (*layers, flax_block("head", nn.Dense(3))), (6,), 3)
    assert cost_table(model).forward_flops.tolist() == [72, 72, 36]


def test_running_statistics_travel_unless_frozen():
    mean, frozen = cost_table(normed()), cost_table(normed("frozen"))
    np.testing.assert_array_equal(mean.stats_bytes, [4 * 12, 0, 0])
    params = 4 * (4 * 6 + 6 + 12 + 6 * 3 + 3)
    assert mean.download_bytes() == frozen.download_bytes() == params + 48
    assert mean.upload_bytes(0, None) == params + 48
    assert frozen.upload_bytes(0, None) == params
    assert mean.upload_bytes(2, 2) == 4 * 21


def test_block_without_parameters_passes_the_gradient_on():
    table = cost_table(normed())
    np.testing.assert_array_equal(table.forward_flops, [48, 0, 36])
    np.testing.assert_array_equal(table.weight_grad_flops, [48, 0, 36])
    np.testing.assert_array_equal(table.input_grad_flops, [48, 0, 36])


def test_tokens_have_no_gradient():
    blocks = (flax_block("embed", Embed()), flax_block("head", nn.Dense(11)))
    table = cost_table(BlockModel("text", blocks, (7,), 11, input_dtype=jnp.int32))
    np.testing.assert_array_equal(table.forward_flops, 7 * 2 * np.array([5 * 6, 6 * 11]))
    # The gradient of the embedding is a scatter: the dense layer's two contractions remain.
    assert table.weight_grad_flops[0] == 2 * 7 * 2 * 5 * 6
    assert table.input_grad_flops[0] == 0


def test_memory_grows_with_batch_and_slots_and_holds_the_activations(exits):
    sgd = exits.memory_bytes(0, 3, 10)
    params = exits.param_bytes.sum()
    assert sgd == 2 * params + 10 * exits.stored_bytes.sum()
    assert exits.memory_bytes(0, 3, 10, optimizer_slots=2) == sgd + 2 * params
    # conv1 of an 8x8 image keeps at least its input and its 8x8x32 output before the ReLU.
    assert exits.stored_bytes[0] >= 4 * (64 + 8 * 8 * 32)
    assert exits.activation_bytes[0] == 4 * 4 * 4 * 32


@pytest.mark.parametrize("bad", [(-1, 3), (2, 1), (0, 4)])
def test_sub_models_that_do_not_exist_are_refused(exits, bad):
    with pytest.raises(InputError, match=r"0 <= first <= exit <= 3"):
        exits.step_flops(*bad)


def test_bad_arguments_are_refused(cnn, exits):
    with pytest.raises(InputError, match=r"no exit heads.*with_exits"):
        cnn.step_flops(0, 1)
    with pytest.raises(InputError, match="integers"):
        cnn.step_flops(0.5, 3)
    with pytest.raises(InputError, match="batch"):
        exits.memory_bytes(0, 3, 0)
    with pytest.raises(InputError, match="samples"):
        price(cnn, Fleet(np.ones(1)), np.array([0]), 0, 3, 0, 0.0, None)


@pytest.mark.parametrize(
    ("model", "tolerance"),
    [(mlp((32,), 10, hidden=(64, 48)), 0.06), (leaf_cnn((12, 12, 1), 10, hidden=32), 0.15)],
    ids=["mlp", "cnn"],
)
def test_counts_agree_with_xla(model, tolerance):
    """XLA also counts biases, activations and pooling: it may see more, within the tolerance."""
    table = cost_table(model)
    batch = 4
    variables = model.shapes
    shapes = [jax.ShapeDtypeStruct((batch, *model.input_shape), jnp.float32)]
    shapes += model.activation_shapes(batch)
    for b, block in enumerate(model.blocks):
        params = variables.params["blocks"][b]
        run = lambda p, x, block=block: block.apply(p, {}, x, train=True, key=None)[0]
        got = xla_flops(run, params, shapes[b]) / batch
        assert table.forward_flops[b] <= got <= table.forward_flops[b] * (1 + tolerance), block.name

        def step(p, x, g, run=run):
            return jax.vjp(run, p, x)[1](g)

        want = table.weight_grad_flops[b] + table.input_grad_flops[b]
        # The ReLU's mask needs the forward contraction again; the last block has none.
        want += table.forward_flops[b] if b < table.num_blocks - 1 else 0
        got = xla_flops(step, params, shapes[b], shapes[b + 1]) / batch
        assert 0.95 * want <= got <= want * (1 + tolerance), block.name


class TestPrice:
    fleet = Fleet(
        flops_per_s=np.array([1e9, 5e8, 1e9]),
        downlink_bytes_per_s=np.array([1e6, 1e6, np.inf]),
        uplink_bytes_per_s=np.array([1e5, 1e5, np.inf]),
    )
    clients = np.array([0, 1, 2])

    def test_parts(self, cnn):
        timing = price(cnn, self.fleet, self.clients, np.array([0, 3, 0]), None, 100, 0.0, None)
        full, head = 100 * 72_384_512, 100 * 24_556_544
        np.testing.assert_allclose(timing.flops, [full, head, full])
        np.testing.assert_allclose(timing.compute_s, [full / 1e9, head / 5e8, full / 1e9])
        np.testing.assert_allclose(timing.download_s, [6.65348, 6.65348, 0])
        np.testing.assert_allclose(timing.upload_s, [66.5348, 0.2052, 0])
        np.testing.assert_array_equal(timing.bytes_down, 3 * [6_653_480])
        np.testing.assert_array_equal(timing.bytes_up, [6_653_480, 20_520, 6_653_480])

    def test_halving_the_sub_model_makes_its_device_faster(self, cnn):
        full = price(cnn, self.fleet, self.clients, 0, None, 50, 0.0, None)
        part = price(cnn, self.fleet, self.clients, np.array([0, 2, 0]), None, 50, 0.0, None)
        faster = part.total_s < full.total_s
        np.testing.assert_array_equal(faster, [False, True, False])

    def test_overrides(self, cnn):
        timing = price(
            cnn,
            self.fleet,
            self.clients,
            0,
            None,
            1,
            0.0,
            None,
            flops=np.array([1e9, 1e9, 1e9]),
            bytes_down=np.array([0, 10**6, 0]),
            bytes_up=np.array([0, 0, 7]),
        )
        np.testing.assert_allclose(timing.total_s, [1.0, 3.0, 1.0])
        np.testing.assert_array_equal(timing.bytes_up, [0, 0, 7])
