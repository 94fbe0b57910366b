"""Cuts of a network: the published tables, prices of the halves, bytes and times."""

import numpy as np
import pytest

from fedjax_het.fleet import splits
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.splits import cuts, price_tiers
from fedjax_het.models import build, with_exits
from fedjax_het.models.resnet import resnet56, resnet110

MIB = 2**20
CLIENT_PARAMS = {
    "resnet56": [464, 14_480, 28_112, 87_888, 141_264, 377_552, 588_752],
    "resnet110": [464, 28_112, 55_376, 168_528, 275_280, 722_768, 1_145_168],
}
TOTAL = {"resnet56": 591_322, "resnet110": 1_147_738}
SERVER_1 = {"resnet56": 590_858, "resnet110": 1_147_274}
MACS = {
    "resnet56": [442_368, 13_631_488, 13_369_344, 16_515_072, 13_369_344, 16_515_072, 13_369_344],
    "resnet110": [442_368, 27_000_832, 26_738_688, 29_884_416, 26_738_688, 29_884_416, 26_738_688],
}
HEADS = [170, 650, 650, 1290, 1290, 2570, 2570]
SENT = [65_536, 262_144, 262_144, 131_072, 131_072, 65_536, 65_536]


@pytest.fixture(scope="module", params=[resnet56, pytest.param(resnet110, marks=pytest.mark.slow)])
def table(request):
    model = with_exits(request.param(norm="batch", granularity="module"))
    return model.name, cost_table(model)


def test_published_tables(table):
    """See methods/dtfl.md 1, 2, check 1."""
    name, cost = table
    cut = cuts(8)
    np.testing.assert_array_equal(cut, np.arange(7))
    np.testing.assert_array_equal(cost.param_count.cumsum()[cut], CLIENT_PARAMS[name])
    server = cost.param_count.sum() - cost.param_count.cumsum()[cut]
    assert cost.param_count.sum() == TOTAL[name]
    assert server[0] == SERVER_1[name]
    np.testing.assert_array_equal(server + CLIENT_PARAMS[name], TOTAL[name])
    np.testing.assert_array_equal(cost.exit_param_count[cut], HEADS)
    np.testing.assert_array_equal(cost.activation_bytes[cut], SENT)
    np.testing.assert_array_equal(cost.forward_flops[:7], 2 * np.asarray(MACS[name]))
    assert cost.forward_flops[7] == 2 * 2560


def test_fewer_tiers_are_the_deepest():
    np.testing.assert_array_equal(cuts(8, 6), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(cuts(8, 1), [6])
    np.testing.assert_array_equal(cuts(4), [0, 1, 2])


def test_analytic_ratios(table):
    """Forward MACs of the halves without heads, over tier 1 of six; methods/dtfl.md 6."""
    name, cost = table
    forward = cost.forward_flops.cumsum()[cuts(8, 6)]
    wanted = {
        "resnet56": ([1, 1.95, 3.12, 4.07, 5.25, 6.20], [1, 0.817, 0.591, 0.409, 0.183, 0]),
        "resnet110": ([1, 1.97, 3.06, 4.04, 5.13, 6.10], [1, 0.809, 0.596, 0.404, 0.191, 0]),
    }[name]
    np.testing.assert_allclose(forward / forward[0], wanted[0], atol=0.006)
    server = cost.forward_flops.sum() - forward
    np.testing.assert_allclose(server / server[0], wanted[1], atol=0.006)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("leaf_cnn", (28, 28, 1)), ("vgg11", (32, 32, 3)), ("mlp", (20,)), ("cifar_cnn", (32, 32, 3))],
)
def test_halves_cost_the_whole(name, shape):
    cost = cost_table(build(name, shape, 10, exits=True))
    cut = cuts(cost.num_blocks)
    table, returned = price_tiers(cost, cut), price_tiers(cost, cut, returned=True)
    heads = cost.exit_forward_flops + cost.exit_weight_grad_flops + cost.exit_input_grad_flops
    whole = float(cost.step_flops())
    np.testing.assert_allclose(returned.client_flops + returned.server_flops, whole)
    np.testing.assert_allclose(
        table.client_flops + table.server_flops,
        whole + heads[cut] - cost.input_grad_flops[cut + 1],
    )
    np.testing.assert_allclose(table.client_flops, cost.step_flops(0 * cut, cut))
    assert (np.diff(table.client_flops - heads[cut]) > 0).all()
    assert (np.diff(table.server_flops) < 0).all()
    np.testing.assert_array_equal(
        table.down_bytes - returned.down_bytes, cost.exit_param_bytes[cut]
    )


def test_uplink_of_tier_2(table):
    """5000 samples: 1250 MiB of activations and 40 kB of labels; methods/dtfl.md check 11."""
    tiers = price_tiers(table[1], cuts(8))
    samples = np.array([5000, 100])
    moved = splits.split_bytes(tiers, np.array([1, 1]), samples, labels=1)
    model = tiers.up_bytes[1]
    np.testing.assert_array_equal(moved.up - model - 8 * samples, [1250 * MIB, 25 * MIB])
    np.testing.assert_array_equal(moved.down, tiers.down_bytes[[1, 1]])
    returned = splits.split_bytes(tiers, np.array([1, 1]), samples, 1, returned=True)
    np.testing.assert_array_equal(returned.down - moved.down, [1250 * MIB, 25 * MIB])


def test_time_is_the_longer_side_and_the_transfer():
    """See methods/dtfl.md check 13."""
    fleet = Fleet(np.array([10.0, 10.0]), downlink_bytes_per_s=4.0, uplink_bytes_per_s=2.0)
    who, rng = np.arange(2), np.random.default_rng(0)
    moved = splits.Bytes(np.array([8, 8]), np.array([6, 6]))
    arguments = (fleet, who, np.array([50.0, 50.0]), np.array([3.0, 9.0]), moved, 0.0, rng)
    both, own_s = splits.split_timing(*arguments)
    np.testing.assert_allclose(own_s, [5, 5])
    np.testing.assert_allclose(both.compute_s, [5, 9])
    np.testing.assert_allclose(both.total_s, [5 + 2 + 3, 9 + 2 + 3])
    np.testing.assert_allclose(splits.transfer_s(fleet, who, moved), [5, 5])
    after, _ = splits.split_timing(*arguments, parallel=False)
    np.testing.assert_allclose(after.total_s, [8 + 5, 14 + 5])
