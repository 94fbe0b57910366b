"""Image sets: scikit-learn digits, the IDX family, CIFAR-10, Quick, Draw! and LEAF FEMNIST."""

import math
from pathlib import Path

import numpy as np

from fedjax_het.common.arrays import Layout, read_arrays, within
from fedjax_het.data.checks import as_labels
from fedjax_het.data.federated import Normalise
from fedjax_het.data.sources.files import (
    DataDir,
    Folder,
    check_digest,
    folder,
    read_bytes,
)
from fedjax_het.data.sources.raw import RawData

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_FASHION_MNIST_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_QUICKDRAW_SHA256 = "556472a3350b022c58a96caeec358d6acf9dee28f79ec8d49dd1dcbc9ae46513"
_FEMNIST_SHA256 = "b72bb9cee3e438ff485fb22bd8026882871a989a55b6a43b7608e0d1df41facb"
_QUICKDRAW_ARRAYS: Layout = {
    "x": ("uint8", ("N", 28, 28)),
    "y": ("integers", ("N",)),
    "classes": ("text", ("C",)),
}
_FEMNIST_ARRAYS: Layout = {
    "x": ("uint8", ("N", 28, 28)),
    "y": ("integers", ("N",)),
    "writer": ("integers", ("N",)),
    "is_test": ("bool", ("N",)),
    "writers": ("text", ("W",)),
}
_FEMNIST_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def digits(data_dir: DataDir = None) -> RawData:
    """Digits from the scikit-learn package: 1,437 + 360 images 8 x 8 x 1, 10 classes.

    The test set is every fifth image of the set sorted by label, so it is stratified and fixed.
    Grey levels 0..16 are stored as uint8 0..255.

    Args:
      data_dir: argument that all sources share; not used, because no file is read.
    """
    from sklearn.datasets import load_digits  # slow to import, needed here only

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    y = bunch.target.astype(np.int32)
    by_label = np.argsort(y, kind="stable")
    held = np.zeros(len(y), bool)
    held[by_label[::5]] = True
    return RawData(
        name="digits",
        x=x[~held],
        y=y[~held],
        test_x=x[held],
        test_y=y[held],
        num_classes=10,
        normalise=(0.3053, 0.3760),
        classes=tuple("0123456789"),
    )


def read_idx(place: Folder, path: Path) -> np.ndarray:
    """Array of an IDX file, uint8 (two zero bytes, type 8, rank, big-endian lengths, content)."""
    data = read_bytes(place, path)
    return _parse_idx(place, path, data)


def _parse_idx(place: Folder, path: Path, data: bytes) -> np.ndarray:
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise place.broken(
            path, f"magic number {data[:4].hex()}, expected 000008 and a rank 01..04"
        )
    rank = data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise place.broken(path, f"{len(data)} bytes, shorter than its header of {header}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, offset=4))
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise place.broken(path, f"{len(data)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _idx_set(
    name: str,
    data_dir: DataDir,
    digests: tuple[str, ...],
    verify: bool,
    normalise: Normalise,
    classes: tuple[str, ...],
) -> RawData:
    place = folder(data_dir, name, f"put the four {name} IDX files (.gz or plain) there")
    arrays = []
    for stem, digest in zip(_IDX_FILES, digests, strict=True):
        path = place.find(f"{stem}.gz", stem, stem.replace("-idx", ".idx"))
        data = read_bytes(place, path)
        array = _parse_idx(place, path, data)
        if array.ndim != int(stem[-7]):
            raise place.broken(path, f"rank {array.ndim}, expected {stem[-7]}")
        if verify:
            check_digest(place, path, digest, data)
        arrays.append(array)
    x, y, test_x, test_y = arrays
    for images, labels, split in ((x, y, "train"), (test_x, test_y, "t10k")):
        if len(images) != len(labels):
            raise place.broken(place.root, f"{split}: {len(images)} images, {len(labels)} labels")
    return RawData(
        name=name,
        x=x[..., None],
        y=y.astype(np.int32),
        test_x=test_x[..., None],
        test_y=test_y.astype(np.int32),
        num_classes=len(classes),
        normalise=normalise,
        classes=classes,
    )


def mnist(data_dir: DataDir = None, verify: bool = True) -> RawData:
    """MNIST: 60,000 + 10,000 images 28 x 28 x 1, 10 classes.

    Args:
      data_dir: directory with the IDX files, or with a folder `mnist` that holds them.
      verify: whether content other than the published one is refused.
    """
    return _idx_set("mnist", data_dir, _MNIST_SHA256, verify, (0.1307, 0.3081), tuple("0123456789"))


def fashion_mnist(data_dir: DataDir = None, verify: bool = True) -> RawData:
    """Fashion-MNIST: 60,000 + 10,000 images 28 x 28 x 1, 10 classes.

    Args:
      data_dir: directory with the IDX files, or with a folder `fashion_mnist` that holds them.
      verify: whether content other than the published one is refused.
    """
    return _idx_set(
        "fashion_mnist", data_dir, _FASHION_MNIST_SHA256, verify, (0.2860, 0.3530), _FASHION_CLASSES
    )


def cifar10(data_dir: DataDir = None, verify: bool = True) -> RawData:
    """CIFAR-10 in its binary version: 50,000 + 10,000 images 32 x 32 x 3, 10 classes.

    Args:
      data_dir: directory with the folder `cifar-10-batches-bin`, or with a folder `cifar10` that
        holds it.
      verify: whether content other than the published one is refused.
    """
    place = folder(
        data_dir, "cifar10", "unpack cifar-10-binary.tar.gz (cs.toronto.edu/~kriz) there"
    )
    images, labels = [], []
    for name, digest in _CIFAR10_SHA256.items():
        path = place.find(f"cifar-10-batches-bin/{name}", name)
        data = read_bytes(place, path)
        if len(data) == 0 or len(data) % 3073:
            raise place.broken(path, f"{len(data)} bytes, not a whole number of 3,073-byte records")
        if verify:
            check_digest(place, path, digest, data)
        records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        labels.append(records[:, 0].astype(np.int32))
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        images.append(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))
    return RawData(
        name="cifar10",
        x=np.concatenate(images[:-1]),
        y=np.concatenate(labels[:-1]),
        test_x=images[-1],
        test_y=labels[-1],
        num_classes=10,
        normalise=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        classes=_CIFAR10_CLASSES,
    )


def quickdraw(data_dir: DataDir = None, verify: bool = True) -> RawData:
    """Quick, Draw!: 345 classes of 80 + 20 drawings 28 x 28 x 1; strokes are bright.

    Every fifth drawing of each class is a test sample.

    Args:
      data_dir: directory with `quickdraw345.npz` (x uint8[N, 28, 28], y, classes), or with a folder
        `quickdraw` that holds it.
      verify: whether content other than the published one is refused.
    """
    place = folder(data_dir, "quickdraw", "put quickdraw345.npz (keys x, y, classes) there")
    path = place.find("quickdraw345.npz")
    z = read_arrays(path, _QUICKDRAW_ARRAYS, place.again)
    if verify:
        check_digest(place, path, _QUICKDRAW_SHA256, z["x"], z["y"])
    x, y = z["x"][..., None], as_labels(z["y"], f"{path}: y")
    held = np.zeros(len(y), bool)
    held[np.argsort(y, kind="stable")[::5]] = True
    return RawData(
        name="quickdraw",
        x=x[~held],
        y=y[~held],
        test_x=x[held],
        test_y=y[held],
        num_classes=len(z["classes"]),
        normalise=(0.1497, 0.3108),
        classes=tuple(str(c) for c in z["classes"]),
    )


def femnist(data_dir: DataDir = None, verify: bool = True) -> RawData:
    """LEAF FEMNIST, a sample of 207 writers: 28,237 + 3,245 images 28 x 28 x 1, 62 classes.

    Writers are the natural clients, and each has its own test images. The file stores dark strokes
    on white (255); images are inverted, so that strokes are bright on a background of 0 as in
    MNIST, and zero padding looks like background.

    Args:
      data_dir: directory with `femnist_leaf_207w.npz` (x uint8[N, 28, 28], y, writer, is_test,
        writers), or with a folder `femnist` that holds it.
      verify: whether content other than the published one is refused.
    """
    place = folder(data_dir, "femnist", "put femnist_leaf_207w.npz there")
    path = place.find("femnist_leaf_207w.npz")
    z = read_arrays(path, _FEMNIST_ARRAYS, place.again)
    if verify:
        published = (z[name] for name in ("x", "y", "writer", "is_test"))
        check_digest(place, path, _FEMNIST_SHA256, *published)
    x, y, held = 255 - z["x"][..., None], as_labels(z["y"], f"{path}: y"), z["is_test"]
    if not within(z["writer"], 0, len(z["writers"]) - 1):
        raise place.broken(path, f"writer numbers beyond the {len(z['writers'])} writers")
    writer = z["writers"][z["writer"]]
    return RawData(
        name="femnist",
        x=x[~held],
        y=y[~held],
        test_x=x[held],
        test_y=y[held],
        num_classes=62,
        normalise=(0.0384, 0.1637),
        classes=_FEMNIST_CLASSES,
        clients=writer[~held],
        test_clients=writer[held],
    )
