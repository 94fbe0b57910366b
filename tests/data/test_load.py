import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.data import load_federated
from fedjax_het.data.partition import contiguous, dirichlet


def _writers(path):
    """Writers w0..w4 with 2, 4, 6, 8, 10 training samples and one test sample each."""
    writer = np.repeat(np.arange(5), 2 * np.arange(1, 6) + 1)
    last = np.r_[writer[1:] != writer[:-1], True]
    np.savez(
        path / "femnist_leaf_207w.npz",
        x=np.repeat(writer[:, None, None], 28, 1).repeat(28, 2).astype(np.uint8),
        y=np.zeros(len(writer), np.uint8),
        writer=writer.astype(np.int16),
        is_test=last,
        writers=np.array([f"w{i}" for i in range(5)]),
    )


def test_digits_with_a_partition():
    data = load_federated("digits", partition=dirichlet(10, 0.5), seed=3)
    assert data.num_clients == 10
    assert data.sizes.sum() == 1437
    assert data.test_client is None
    assert data.name == "digits"
    assert data.pipeline.mean == (0.3053,)
    again = load_federated("digits", partition=dirichlet(10, 0.5), seed=3)
    assert data.fingerprint() == again.fingerprint()
    plain = load_federated("digits", partition=dirichlet(10, 0.5), seed=3, normalise=(0.0, 1.0))
    assert plain.pipeline.std == (1.0,)


def test_natural_clients_are_the_default(tmp_path):
    _writers(tmp_path)
    data = load_federated("femnist", tmp_path, verify=False)
    assert data.sizes.tolist() == [2, 4, 6, 8, 10]
    assert data.test_client.tolist() == [0, 1, 2, 3, 4]


def test_largest_natural_clients_keep_their_own_test_samples(tmp_path):
    _writers(tmp_path)
    data = load_federated("femnist", tmp_path, verify=False, num_clients=2)
    assert data.sizes.tolist() == [8, 10]
    assert data.test_client.tolist() == [0, 1]
    assert (255 - data.test_x[:, 0, 0, 0]).tolist() == [3, 4]
    data = load_federated("femnist", tmp_path, verify=False, min_client_samples=5)
    assert data.sizes.tolist() == [6, 8, 10]
    assert len(data.test_x) == 3
    data = load_federated("femnist", tmp_path, verify=False, num_clients=2, test_others=True)
    assert data.sizes.tolist() == [8, 10]
    assert data.test_client.tolist() == [2, 3, 4, 0, 1]  # w3 and w4 train


def test_a_partition_replaces_natural_clients(tmp_path):
    _writers(tmp_path)
    data = load_federated("femnist", tmp_path, verify=False, partition=contiguous(3))
    assert data.sizes.tolist() == [10, 10, 10]
    assert len(data.test_x) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 6}, "num_clients = 6, min_client_samples = 1: femnist has 5 such"),
        ({"num_clients": 3, "min_client_samples": 8}, "has 2 such clients of 5"),
        ({"min_client_samples": 99}, "has 0 such clients of 5"),
        ({"num_clients": 0}, "num_clients = 0"),
        ({"min_client_samples": 0}, "min_client_samples = 0"),
        ({"partition": contiguous(2), "num_clients": 2}, "a partition is given"),
    ],
)
def test_impossible_choices_of_clients(tmp_path, options, message):
    _writers(tmp_path)
    with pytest.raises(InputError, match=message):
        load_federated("femnist", tmp_path, verify=False, **options)


def test_sets_without_natural_clients_need_a_partition():
    with pytest.raises(InputError, match="it has no natural clients; give partition"):
        load_federated("digits")


def test_real_natural_sets(real):
    femnist = real("femnist", load_federated, num_clients=20, validation_fraction=0.1)
    assert femnist.num_clients == 20
    assert len(np.unique(femnist.test_client)) == 20
    assert femnist.val_x is not None
    roles = real("shakespeare", load_federated, num_clients=10, per_client_cap=30)
    assert roles.sizes.tolist() == [30] * 10
