"""What the compiler is told, and what happens where it does not understand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.runtime import compiling
from fedjax_het.runtime.compiling import Compiler, compiler_options


@pytest.mark.parametrize("side_by_side", [False, True])
def test_products_of_one_client_at_a_time_are_eigens_on_a_cpu(side_by_side):
    x = np.ones((64, 64), np.float32)
    compiled = Compiler().compile(lambda x: x @ x, x, side_by_side=side_by_side)
    plain = jax.jit(lambda x: x @ x).lower(x).compile()
    assert ("__ynn_fusion" in compiled.as_text()) == (
        side_by_side and "__ynn_fusion" in plain.as_text()
    )
    np.testing.assert_array_equal(compiled(x), np.full((64, 64), 64, np.float32))


def test_options_that_this_compiler_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiling, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    compiler_options.cache_clear()
    try:
        assert compiler_options() == {}
        assert Compiler().compile(jnp.sin, np.float32(0))(np.float32(0)) == 0
    finally:
        monkeypatch.undo()
        compiler_options.cache_clear()
    assert (compiler_options() != {}) == (jax.default_backend() == "cpu")
