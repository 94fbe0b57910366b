"""Variables by name, and files that any reader of safetensors understands."""

import chex
import jax
import numpy as np
import pytest
from problems import batch_norm_problem, scalar_problem, scalars, values_of
from safetensors.numpy import load_file, save_file

from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models.saving import digest, fitted, named, read, write


@pytest.fixture
def model():
    return batch_norm_problem(exits=True).model


def test_names_are_paths(model):
    assert sorted(named(model.shapes)) == [
        "blocks.0.BatchNorm_0.bias",
        "blocks.0.BatchNorm_0.scale",
        "blocks.0.Dense_0.bias",
        "blocks.0.Dense_0.kernel",
        "blocks.1.Dense_0.bias",
        "blocks.1.Dense_0.kernel",
        "exits.0.Dense_0.bias",
        "exits.0.Dense_0.kernel",
        "stats.blocks.0.BatchNorm_0.mean",
        "stats.blocks.0.BatchNorm_0.var",
    ]


def test_a_file_holds_the_same_bits(model, tmp_path):
    variables = model.init(jax.random.key(3))
    write(tmp_path / "m.safetensors", variables, {"of": "a test"})
    by_others = load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(
        by_others["blocks.1.Dense_0.kernel"], variables.params["blocks"][1]["Dense_0"]["kernel"]
    )
    arrays, metadata = read(tmp_path / "m.safetensors", "file")
    assert metadata == {"of": "a test"}
    again = fitted(arrays, model.shapes, "file", "none")
    chex.assert_trees_all_equal(again, variables)
    assert digest(again) == digest(variables)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_scalars_and_views_are_kept(tmp_path):
    """Parameters without an axis, and arrays whose memory is in another order."""
    model = scalar_problem(blocks=2).model
    write(tmp_path / "m.safetensors", scalars([1.5, -2.0]), {})
    again = fitted(read(tmp_path / "m.safetensors", "file")[0], model.shapes, "file", "none")
    np.testing.assert_array_equal(values_of(again), [1.5, -2.0])
    turned = Variables({"blocks": ({"w": np.arange(6.0).reshape(2, 3).T},), "exits": ()}, {})
    write(tmp_path / "t.safetensors", turned, {})
    arrays, _ = read(tmp_path / "t.safetensors", "file")
    np.testing.assert_array_equal(arrays["blocks.0.w"], [[0, 3], [1, 4], [2, 5]])


def test_half_precision_of_others_is_widened(model, tmp_path):
    variables = model.init(jax.random.key(3))
    halves = {name: np.asarray(leaf, np.float16) for name, leaf in named(variables).items()}
    save_file(halves, tmp_path / "m.safetensors")
    loaded = fitted(read(tmp_path / "m.safetensors", "file")[0], model.shapes, "file", "none")
    for name, leaf in named(loaded).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, halves[name].astype(np.float32))


def test_a_digest_depends_on_every_bit_and_name(model):
    variables = model.init(jax.random.key(3))
    digests = {digest(variables)}
    for place in (0, -1):
        leaves, structure = jax.tree.flatten(variables)
        leaves[place] = np.nextafter(np.asarray(leaves[place]), np.float32(9.0))
        digests.add(digest(jax.tree.unflatten(structure, leaves)))
    swapped = variables._replace(params={**variables.params, "exits": ()})
    assert len({*digests, digest(swapped)}) == 4


def test_all_differences_are_listed(model):
    arrays = {name: np.zeros(leaf.shape) for name, leaf in named(model.shapes).items()}
    del arrays["exits.0.Dense_0.bias"]
    arrays["blocks.2.kernel"] = np.zeros(3)
    arrays["blocks.1.Dense_0.bias"] = np.zeros(9)
    arrays["blocks.0.Dense_0.bias"] = np.zeros(8, np.int32)
    with pytest.raises(InputError) as caught:
        fitted(arrays, model.shapes, "the file", "use another")
    assert str(caught.value) == (
        "the file: does not fit the model: missing (exits.0.Dense_0.bias), unexpected "
        "(blocks.2.kernel), differently shaped (blocks.1.Dense_0.bias [9] for [10]), not of "
        "floating point (blocks.0.Dense_0.bias int32); use another"
    )


def test_other_bits_than_were_saved_are_refused(model, tmp_path):
    """No flip, in the arrays or in what says which they are, gives other arrays."""
    path = tmp_path / "m.safetensors"
    write(path, model.init(jax.random.key(3)), {"of": "a test"})
    whole = path.read_bytes()
    arrays, _ = read(path, "file")
    begin = 8 + int.from_bytes(whole[:8], "little")
    places = np.random.default_rng(0).integers(begin, len(whole), 40)
    for place in (*places, *range(8, begin, 7)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(bytes(damaged))
        try:
            found, _ = read(path, "file")
        except InputError:
            continue
        assert place < begin
        chex.assert_trees_all_equal(found, arrays)
