import numpy as np
import pytest

from fedjax_het.data import from_arrays
from fedjax_het.data.partition import dirichlet
from fedjax_het.data.plots import label_plot


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (10, 10), (300, 100)])
def test_label_plot_shows_every_client(tmp_path, clients, classes):
    n = 12 * clients + classes
    x, y = np.zeros((n, 2), np.float32), np.arange(n) % classes
    names = [" ", "$x^2$", *[f"class {i}" for i in range(2, classes)]]
    data = from_arrays(x, y, x, y, clients=dirichlet(clients, 0.3), classes=names)
    path = tmp_path / "labels.png"
    figure = label_plot(data, path)
    heat, sizes = figure.axes[:2]
    shown = heat.images[0].get_array()
    assert shown.shape == (clients, classes)
    np.testing.assert_allclose(shown.sum(axis=1), 1.0)
    assert len(sizes.patches) == clients
    assert sorted(p.get_width() for p in sizes.patches) == sorted(data.sizes)
    assert path.read_bytes()[:4] == b"\x89PNG"
    if clients > 60:
        assert np.all(np.diff(shown.argmax(axis=1)) >= 0), "sorted by most frequent label"
    else:
        np.testing.assert_allclose(shown * data.sizes[:, None], data.label_counts(), atol=1e-9)
