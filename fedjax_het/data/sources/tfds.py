"""TensorFlow Datasets, read with `tfds.data_source`, which does not need TensorFlow."""

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.data.checks import as_labels, as_storage
from fedjax_het.data.sources.files import DataDir
from fedjax_het.data.sources.raw import RawData


def tfds(
    data_dir: DataDir = None,
    dataset: str = "mnist",
    train_split: str = "train",
    test_split: str = "test",
    input_key: str = "image",
    label_key: str = "label",
    client_key: str | None = None,
) -> RawData:
    """Any prepared TFDS set of equally shaped inputs with integer labels.

    Reading does not import TensorFlow. Preparing a set usually does, so nothing is prepared here:
    run `tfds build NAME --file_format=array_record` once on a machine with TensorFlow and a
    network.

    Args:
      data_dir: TFDS directory; default that of TFDS (`~/tensorflow_datasets`).
      dataset: TFDS name, e.g. `"mnist"` or `"emnist/balanced"`.
      train_split: split to train on, e.g. `"train[:80%]"`.
      test_split: split to evaluate on.
      input_key: feature used as input.
      label_key: feature used as label.
      client_key: feature that names the natural client of a sample, or None.
    """
    import tensorflow_datasets as library  # slow to import, needed here only

    columns = []
    for split in (train_split, test_split):
        try:
            source = library.data_source(dataset, split=split, data_dir=data_dir, download=False)
            rows = [source[i] for i in range(len(source))]
        # TFDS has no common base class of errors: a missing set, file format, split or TensorFlow
        # each raises a different built-in exception.
        except Exception as error:
            raise InputError(
                f"TFDS set {dataset!r}, split {split!r}: cannot be read ({error!r:.300}); prepare "
                "it once with `tfds build NAME --file_format=array_record` and give its data_dir"
            ) from error
        keys = [key for key in (input_key, label_key, client_key) if key is not None]
        require(len(rows) > 0, f"TFDS set {dataset!r}, split {split!r}", "is empty", "use another")
        missing = [key for key in keys if key not in rows[0]]
        require(
            not missing,
            f"features {missing} of TFDS set {dataset!r}",
            f"must be among {sorted(rows[0])}",
            "set input_key, label_key and client_key",
        )
        for key in keys:
            shapes = {np.shape(row[key]) for row in rows}
            require(
                len(shapes) == 1,
                f"{key} of TFDS set {dataset!r} has {len(shapes)} shapes",
                "must have one",
                "use a set of equally sized inputs",
            )
        columns.append({key: np.stack([np.asarray(row[key]) for row in rows]) for key in keys})
    train, test = columns
    x, y = as_storage(train[input_key], input_key), as_labels(train[label_key], label_key)
    test_y = as_labels(test[label_key], label_key)
    return RawData(
        name=f"tfds/{dataset}",
        x=x,
        y=y,
        test_x=as_storage(test[input_key], input_key),
        test_y=test_y,
        num_classes=1 + max(int(y.max()), int(test_y.max())),
        clients=train.get(client_key) if client_key is not None else None,
        test_clients=test.get(client_key) if client_key is not None else None,
    )
