import subprocess
import sys

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.data import load

tfds = pytest.importorskip("tensorflow_datasets")


def test_reads_through_data_source():
    with tfds.testing.mock_data(num_examples=7):
        raw = load("tfds", dataset="mnist")
    assert raw.x.shape == (7, 28, 28, 1)
    assert raw.x.dtype == np.uint8
    assert raw.y.dtype == np.int32
    assert raw.name == "tfds/mnist"


def test_natural_clients_come_from_a_feature():
    with tfds.testing.mock_data(num_examples=4):
        raw = load("tfds", dataset="mnist", client_key="label")
    np.testing.assert_array_equal(raw.clients, raw.y)


def test_unknown_features_and_sets(tmp_path):
    with (
        tfds.testing.mock_data(num_examples=2),
        pytest.raises(InputError, match=r"features \['picture'\] .* \['image', 'label'\]"),
    ):
        load("tfds", dataset="mnist", input_key="picture")
    with pytest.raises(InputError, match="tfds build"):
        load("tfds", tmp_path, dataset="no_such_set")
    with pytest.raises(InputError, match="tfds build"):
        load("tfds", tmp_path, dataset="mnist")


def test_does_not_import_tensorflow():
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        "from fedjax_het.data import load\n"
        "with tfds.testing.mock_data(num_examples=2):\n"
        "    load('tfds', dataset='cifar10')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
