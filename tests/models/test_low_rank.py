"""Low-rank adapters: start, gradients of W + (alpha / rank) A B, prices of thin products."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, digits_problem

from fedjax_het import load_model, models
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models import from_flax, lora, with_compute_dtype
from fedjax_het.models.mlp import mlp
from fedjax_het.models.saving import named
from fedjax_het.simulation.simulate import simulate

T, WIDTH, SYMBOLS = 6, 8, 5


class _Attention(nn.Module):
    """A dense layer, attention whose layers are `nn.DenseGeneral`, and two dense layers."""

    @nn.compact
    def __call__(self, x):
        z = nn.Dense(6)(x)
        z = z + nn.MultiHeadDotProductAttention(2, qkv_features=8)(z)
        return nn.Dense(SYMBOLS)(nn.relu(nn.Dense(7)(z.reshape(z.shape[0], -1))))


def _transformer():
    return models.build(
        "transformer", (T,), SYMBOLS, layers=2, width=WIDTH, heads=2, hidden=12, exits=True
    )


MODELS = {
    "transformer": (_transformer, jnp.arange(3 * T, dtype=jnp.int32).reshape(3, T) % SYMBOLS),
    "attention": (
        lambda: from_flax(_Attention(), (3, 4), SYMBOLS),
        jnp.linspace(-1.0, 1.0, 36).reshape(3, 3, 4),
    ),
    "mlp": (lambda: mlp((4,), SYMBOLS, hidden=(8,)), jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A model, its values, the model with adapters, and samples."""
    make, x = MODELS[request.param]
    model = make()
    variables = model.init(jax.random.key(1))
    return model, variables, lora(model, variables, rank=2, alpha=6.0), x


def _moved(variables, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), variables
    )


def _kernels(variables):
    """The kernels of dense layers of the complete model, by name."""
    return {n: leaf for n, leaf in named(variables).items() if n.endswith("kernel")}


def test_the_start_is_that_of_the_model_bit_for_bit(case):
    model, variables, adapted, x = case
    own = adapted.init(jax.random.key(0))
    np.testing.assert_array_equal(adapted.apply(own, x)[0], model.apply(variables, x)[0])
    for leaf, old in zip(
        jax.tree.leaves(adapted.origin.complete(own)), jax.tree.leaves(variables), strict=True
    ):
        np.testing.assert_array_equal(leaf, old)


def test_bfloat16_starts_as_the_model():
    model = with_compute_dtype(mlp((4,), 3, hidden=(8,)), "bfloat16")
    variables = model.init(jax.random.key(1))
    adapted = lora(model, variables, rank=2)
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    own = adapted.init(jax.random.key(0))
    np.testing.assert_array_equal(adapted.apply(own, x)[0], model.apply(variables, x)[0])


def test_every_dense_layer_of_a_block_has_an_adapter(case):
    _, variables, adapted, _ = case
    leaves = named(adapted.shapes)
    assert all(".lora." in name for name in leaves if name.startswith("blocks"))
    factors = [leaf for name, leaf in leaves.items() if name.endswith(".a")]
    dense = [name for name in _kernels(variables) if name.startswith("blocks")]
    assert len(factors) == len(dense)
    assert {leaf.shape[-1] for leaf in factors} == {2}


def test_gradients_are_those_of_the_merged_kernels(case):
    """With G the gradient of the merged kernel: of A it is s G B^T, of B it is s A^T G."""
    model, _, adapted, x = case
    own = _moved(adapted.init(jax.random.key(0)))
    whole = adapted.origin.complete(own)
    target = jnp.cos(jnp.arange(model.apply(whole, x)[0].size, dtype=jnp.float32))

    def loss(of):
        def value(variables):
            return jnp.sum(of.apply(variables, x)[0].reshape(-1) * target)

        return jax.jit(jax.value_and_grad(lambda p, s: value(type(own)(p, s))))

    at, thin = loss(adapted)(own.params, own.stats)
    merged_at, full = loss(model)(whole.params, whole.stats)
    np.testing.assert_allclose(at, merged_at, rtol=1e-4, atol=1e-4)
    # Blocks of the two models correspond, for every block of these models but one has a layer.
    shift = model.num_blocks - adapted.num_blocks
    scale = 6.0 / 2

    def compare(mine, factors, kernels):
        for name, part in factors.items():
            if "a" in part:
                a, b = part["a"], part["b"]
                g = kernels[name]["kernel"].reshape(-1, b[0].size)
                a, b = a.reshape(-1, 2), b.reshape(2, -1)
                of_a, of_b = mine[name]["a"].reshape(-1, 2), mine[name]["b"].reshape(2, -1)
                np.testing.assert_allclose(of_a, scale * g @ b.T, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(of_b, scale * a.T @ g, rtol=1e-3, atol=1e-4)
            else:
                compare(mine[name], part, kernels[name])

    for b, block in enumerate(thin["blocks"]):
        compare(block["lora"], own.params["blocks"][b]["lora"], full["blocks"][b + shift])


def test_prices_are_those_of_thin_products():
    """Layers 64 -> 12 -> 8 -> 10 with rank 2: frozen products forward, thin ones both ways."""
    base = digits_problem()
    variables = base.model.init(jax.random.key(1))
    cost = cost_table(lora(base.model, variables, rank=2))
    sides = np.array([[64, 12], [12, 8], [8, 10]])
    thin = 2 * sides.sum(axis=1)  # multiply-adds of x A and of (x A) B
    dense = sides.prod(axis=1)
    np.testing.assert_array_equal(cost.param_bytes, 4 * thin)
    np.testing.assert_array_equal(cost.forward_flops, 2 * (dense + thin))
    # x^T (g B^T), g B^T, and (x A)^T g; the gradient of the input adds g W^T and (g B^T) A^T.
    back = sides[:, 0] * 2 + 2 * sides[:, 1] * 2
    np.testing.assert_array_equal(cost.weight_grad_flops, 2 * back)
    np.testing.assert_array_equal(cost.input_grad_flops, 2 * (dense + 2 * sides[:, 0]))


def test_a_federation_sends_adapters_only_and_saves_the_merged_model(tmp_path):
    base = digits_problem()
    variables = base.model.init(jax.random.key(1))
    adapted = lora(base.model, variables, rank=2, targets=r"blocks\.[02]", trainable=r"2.*bias")
    problem = replace(base, model=adapted)
    method = build("fedavg", problem, learning_rate=0.1, batch_size=8)
    result = simulate(method, problem, rounds=2, workdir=tmp_path)
    sent = 4 * (2 * (64 + 12) + 2 * (8 + 10) + 10)
    assert {row["bytes_up"] for row in result.record.clients} == {sent}
    assert {row["bytes_down"] for row in result.record.clients} == {sent}
    whole = adapted.origin.complete(result.variables)
    x = jnp.asarray(base.data.test_x)
    assert_close(base.model.apply(whole, x)[0], adapted.apply(result.variables, x)[0])
    before, after = named(variables), named(whole)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        "blocks.0.Dense_0.kernel",
        "blocks.2.Dense_0.kernel",
        "blocks.2.Dense_0.bias",
    }
    loaded = load_model(tmp_path, model=base.model)
    assert_close(loaded.variables, whole, rtol=0, atol=0)


class _Convolving(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,))(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank = 0: must be at least 1; use 4 or 8"),
        ({"alpha": 0.0}, "alpha = 0.0: must be positive; use twice the rank"),
        ({"rank": 4}, "rank = 4: exceeds the kernel [20, 3] of layer 'Dense_0'"),
        (
            {"targets": "dense"},
            "targets = 'dense': matches no dense layer of model",
        ),
        ({"targets": "Conv|Dense"}, "matches blocks.0.Conv_0, which is no nn.Dense or nn.Dense"),
        ({"targets": "("}, "targets = '(': must be a regular expression"),
    ],
)
def test_what_has_no_adapter_is_refused_by_name(options, words):
    model = from_flax(_Convolving(), (5, 2), 3)
    variables = model.init(jax.random.key(0))
    with pytest.raises(InputError) as caught:
        lora(model, variables, **{"rank": 2, **options})
    assert words in str(caught.value)


def test_the_digest_covers_the_scale():
    model = mlp((4,), 3, hidden=())
    variables = model.init(jax.random.key(0))
    digests = [
        lora(model, variables, rank=2, **options).origin.digest
        for options in ({}, {"alpha": 8.0}, {"seed": 1})
    ]
    assert len(set(digests)) == 3


def test_the_first_factors_depend_on_seed_and_layer_only():
    model = mlp((10_000,), 50, hidden=(30,))
    variables = model.init(jax.random.key(0))

    def factor(**options):
        adapted = lora(model, variables, rank=2, **options)
        params = adapted.init(jax.random.key(7)).params
        return np.asarray(params["blocks"][0]["lora"]["Dense_0"]["a"])

    np.testing.assert_array_equal(factor(), factor(targets=r"blocks\.0"))
    assert not np.array_equal(factor(), factor(seed=1))
    assert factor().std() == pytest.approx(0.01, rel=0.05)
