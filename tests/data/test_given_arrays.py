"""Arrays of every kind: what they become is exactly what was given, or one line refuses them."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from malformed.case import problem

from fedjax_het import fleet, simulate
from fedjax_het.algorithms import fedavg
from fedjax_het.common.errors import InputError
from fedjax_het.contract import Variables
from fedjax_het.data import FederatedData, flip_labels, from_arrays
from fedjax_het.data.partition import natural
from fedjax_het.objectives import classification

N, WIDTH, CLASSES = 6, 4, 3
X, Y = np.zeros((N, WIDTH), np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
OWNERS = [0, 0, 0, 1, 1, 1]


def made(**changes: Any) -> FederatedData:
    """A data set of two clients; changed samples are those of the test as well."""
    given: dict[str, Any] = {"x": X, "y": Y, "clients": OWNERS, **changes}
    return from_arrays(
        **{"test_x": given["x"], "test_y": given["y"], **given},
    )


def tried(call: Any, *args: Any, **options: Any) -> Any:
    """The result of a call; None if it refused in one line with a remedy."""
    try:
        return call(*args, **options)
    except InputError as error:
        message = str(error)
    assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", message), message
    return None


DTYPES = (
    *("?", "i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8"),
    *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble", "<c8", ">c16"),
    *("O", "U3", "S3", "V4", "M8[s]", "m8[s]", "i4,f4"),
)
EDGES = (0, 1, 2, 3, -1, -2, 255, 256, 2**24, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
EDGES += (-(2**31), -(2**31) - 1, -(2**32), -(2**32) + 1, -(2**63), 0.5, 65504.0, 1e30, 1e300)
EDGES += (float("nan"), float("inf"), -float("inf"))
FORMS = {
    "plain": lambda a: a,
    "columns first": np.asfortranarray,
    "backwards": lambda a: a[::-1][::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
    "open mask": np.ma.masked_array,
}


def with_edge(base: np.ndarray, dtype: str, edge: Any) -> np.ndarray | None:
    """The array with one other value, or None if the dtype cannot hold it."""
    try:
        with np.errstate(all="ignore"):
            array = base.astype(dtype)
            array[1] = edge
    except (ValueError, TypeError, OverflowError):
        return None
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_labels_keep_their_values_or_are_refused(dtype):
    for edge in EDGES:
        y = with_edge(Y, dtype, edge)
        data = None if y is None else tried(made, y=y)
        if data is not None:
            assert data.y.dtype in (np.int32, np.float32)
            np.testing.assert_array_equal(data.y, y.astype(data.y.dtype))
            # Python compares numbers of any size exactly.
            if data.y.dtype == np.int32:
                assert [int(v) for v in data.y] == [int(v) for v in y]
                assert 0 <= data.y.min() <= data.y.max() < data.num_classes <= 2**24
            else:
                assert np.isfinite(data.y).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_inputs_keep_their_values_or_are_refused(dtype):
    for edge in EDGES:
        x = with_edge(np.zeros((N, WIDTH)), dtype, edge)
        data = None if x is None else tried(made, x=x)
        if data is not None:
            assert data.x.dtype.name in ("uint8", "int16", "float32", "int32", "bool")
            assert data.x.dtype.isnative
            if data.x.dtype == np.float32:
                assert np.isfinite(data.x).all()
                np.testing.assert_array_equal(data.x, x.astype(np.float32))
            else:
                assert data.x.tolist() == x.tolist()
                assert data.x.dtype != np.int32 or data.x.min() >= 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["u1", ">i2", ">i4", ">i8", "<u8", ">f4", "f2", "f8", "?"])
def test_the_layout_of_memory_does_not_matter(dtype, form):
    x = (np.arange(N * WIDTH).reshape(N, WIDTH) % 7).astype(dtype)
    y = Y.astype("<f4" if dtype == "?" else dtype)
    plain = made(x=x.astype(x.dtype.newbyteorder("=")), y=y.astype(y.dtype.newbyteorder("=")))
    given = x if form == "list" else FORMS[form](x)  # a list has lost its dtype
    other = made(x=given, y=FORMS[form](y))
    assert other.fingerprint() == plain.fingerprint()
    np.testing.assert_array_equal(other.device().x, x)


SHAPES = (
    (),
    (0,),
    (1,),
    (N,),
    (N - 1,),
    (0, WIDTH),
    (N, 0),
    (N, 1),
    (1, N),
    (N, 2, 2),
    (N,) + (1,) * 30,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_used_or_refused(shape):
    values = np.zeros(shape)
    tried(made, x=values)
    tried(made, y=values)
    tried(made, y=values.astype(int))
    tried(made, clients=values)
    tried(made, clients=values.astype(int))
    tried(made, test_clients=values)
    tried(made, clients=[values, OWNERS])
    tried(made, normalise=(values, 1.0))


ODD: tuple[Any, ...] = (
    *(None, True, 3, -1, 2.5, float("nan"), 1j, "text", b"bytes", object(), {}, [], (), {1: 2}),
    *([None, 1], [0, [1]], [[0], 1], [[0, 1], [None]], [["a"], ["b"]], [[0.5], [1]], [[True], [1]]),
    *(
        [1, "1"],
        ["a", b"a"],
        ["a", None],
        [10**30] * N,
        [2**63] * N,
        [float("nan")] * N,
        [[[0]], [1]],
    ),
    *([np.ma.masked] * N, [np.datetime64("NaT")] * N, [object()] * N, [{}] * N, [()] * N, [1j] * N),
    *(np.array([None] * N), np.array(["a", None, "a", "b", "b", "b"], object), np.array(5)),
    *(np.zeros(N, "V4"), np.zeros(N, "i4,f4"), np.array([{}], object), lambda *_: None, range(N)),
    *(
        lambda *_: [None, 1],
        lambda *_: [[0, 0]],
        lambda *_: np.zeros(N),
        iter([1]),
        {0, 1},
        "a" * N,
    ),
    *(
        [[2**63]],
        [[-(2**63)]],
        [np.array([2**64 - 1], np.uint64)],
        [[2**32], [1]],
        [[-(2**32)], [1]],
    ),
    *(np.full(N, 2**64 - 1, np.uint64), [[]], [[], []], [np.zeros(0, "U1"), np.arange(N)]),
)
WHERE = (
    "x",
    "y",
    "test_x",
    "test_y",
    "clients",
    "test_clients",
    "num_classes",
    "classes",
    "normalise",
)


@pytest.mark.parametrize("where", WHERE)
def test_odd_values_are_used_or_refused(where):
    looped: list[Any] = [0]
    looped.append(looped)
    for value in (*ODD, looped):
        if where == "classes" and not isinstance(value, list | tuple):
            continue  # names of classes are a sequence
        tried(made, **{where: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y - np.int64(2**32)}, "y: label -4294967296: must be at least -2"),
        ({"y": np.array([0, 1, 2, 0, 1, -(2**63)])}, "y: label -9223372036854775808"),
        ({"y": np.full(N, 2**63, np.uint64)}, "y: label 9223372036854775808: must be below 2"),
        ({"x": np.full((N, 2), -(2**32))}, "x: token -4294967296: must be at least -2"),
        ({"x": {"tokens": np.full((N, 2), -(2**32))}}, r"x\['tokens'\]: token -4294967296"),
        ({"x": np.full((N, 2), -3, ">i4")}, "x: token -3: must be >= 0"),
        ({"y": np.array([0, 1, 2, 0, 1, 2**31 - 1])}, "num_classes = 2147483648: must be at"),
        ({"clients": [None, 1, 1, 1, 1, 1]}, "clients holds ids of NoneType, int"),
        ({"clients": [0, [1]]}, "clients of type list: must be one array"),
        ({"clients": [[1], 0]}, r"clients\[1\] is int64\[\]: must be a one-dimensional"),
        ({"clients": [1, "1", 1, 1, 1, 1]}, "clients holds ids of int, str"),
        ({"clients": [0, 0, np.nan, 1, 1, 1]}, r"clients: \[nan\] of sample \[2\]: must not be"),
        ({"clients": [[-(2**32)], [1]]}, r"clients\[0\] has sample ids -4294967296"),
        ({"clients": OWNERS, "test_clients": np.array(OWNERS) * 1.0}, "test_clients is float64"),
        ({"clients": np.full(N, 2**63, np.uint64)}, "clients: id 9223372036854775808"),
        ({"x": {"a": X, 1: X}}, "x of type dict: must be arrays under names that can be sorted"),
        ({"normalise": ([0.1, [2]], 1.0)}, "normalise of type list: must be one array"),
    ],
)
def test_what_a_cast_would_wrap_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        made(**change)


def hiding(array: Any) -> np.ma.MaskedArray:
    """The array with its first value hidden."""
    array = np.asarray(array)
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 0)


MASKED = {
    "x": lambda: made(x=hiding(X)),
    "x of a dictionary": lambda: made(x={"a": hiding(X)}),
    "x of a list": lambda: made(x=[*hiding(X)]),
    "y": lambda: made(y=hiding(Y)),
    "y of a list": lambda: made(y=[np.ma.masked, *Y[1:].tolist()]),
    "test_x": lambda: made(test_x=hiding(X)),
    "test_y": lambda: made(test_y=hiding(Y)),
    "clients": lambda: made(clients=hiding(OWNERS)),
    "clients of a list": lambda: made(clients=[hiding([0, 1, 2]), [3, 4, 5]]),
    "test_clients": lambda: made(test_clients=hiding(OWNERS)),
    "normalise": lambda: made(normalise=(hiding([0.5]), 1.0)).pipeline,
    "natural": lambda: natural(hiding(OWNERS)),
    "flip_labels": lambda: flip_labels(made(), clients=hiding([0, 1])),
    "data": lambda: FederatedData(
        hiding(X), Y, np.arange(N, dtype=np.int32), np.full(1, N, np.int32), X, Y, CLASSES
    ),
    "class weights": lambda: classification(class_weights=hiding([1.0, 2.0])),
    "speeds": lambda: fleet.Fleet(hiding([1e9, 1e9])),
    "groups": lambda: fleet.Fleet(np.full(2, 1e9), groups=hiding([0, 1])),
    "options": lambda: fleet.build("fedel", 4, slowdowns=hiding([1.0, 2.0])),
    "intervals": lambda: fleet.from_intervals([hiding([[0.0, 1.0]])], [2.0]),
    "periods": lambda: fleet.from_intervals([np.array([[0.0, 1.0]])], hiding([2.0])),
    "traces": lambda: fleet.BandwidthTraces(
        hiding([0.0, 1.0]), np.ones(2), np.array([0, 2]), ("a",), np.zeros(1, int)
    ),
    "start": lambda: started(hiding),
}


def started(change: Any) -> Any:
    """A run from zeros, of which the first array is changed."""
    leaves, structure = jax.tree.flatten(problem().model.shapes)
    arrays = [np.zeros(leaf.shape, np.float32) for leaf in leaves]
    arrays[0] = change(arrays[0])
    initial: Variables = jax.tree.unflatten(structure, arrays)
    return simulate(fedavg(problem(), learning_rate=0.1), problem(), rounds=1, initial=initial)


@pytest.mark.parametrize("name", MASKED)
def test_arrays_that_hide_values_are_refused(name):
    with pytest.raises(InputError, match=r"is a masked array that hides 1 of \d+ values: must not"):
        MASKED[name]()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_no_run_starts_from_values_that_are_not_finite(value):
    with pytest.raises(InputError, match=r"initial = variables: has values .* not finite"):
        started(lambda array: array.astype(np.float64) + value)


@pytest.mark.parametrize(
    "change", [np.ndarray.tolist, lambda a: a.astype(int), lambda a: "a", lambda a: a[:1]]
)
def test_starts_of_another_kind_are_refused(change):
    with pytest.raises(InputError, match="initial"):
        started(change)
