"""The adaptive optimisers of FedOpt, which are not those of optax, and optimisers by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options, checked
from fedjax_het.common.types import PyTree
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import Choice

# The paper's own rules, which differ from optax's.
FEDOPT = ("yogi", "adam")


@checked
def scale_by_fedopt(
    moment: str, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    r"""The adaptive server steps of Reddi et al., as an optax transformation.

    $m = \beta_1 m + (1-\beta_1) g$; Yogi has $v = v - (1-\beta_2) g^2 \mathrm{sign}(v - g^2)$ and
    Adam $v = \beta_2 v + (1-\beta_2) g^2$; the step is $m / (\sqrt v + \tau)$, with $v_0 = \tau^2$.

    Warning: optax's own `scale_by_yogi` and `scale_by_adam` correct the bias of both moments. The
    paper does not, and its default step sizes assume uncorrected moments.

    Args:
      moment: rule of the second moment, "yogi" or "adam".
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      tau: constant added to the root; large values approach plain server momentum.

    References:
      Reddi et al., *Adaptive Federated Optimization*, 2021, Algorithm 2.
    """
    require_known(moment, FEDOPT, "server_optimizer")
    require(tau > 0, f"tau = {tau}", "must be positive", "try 0.001")
    for label, value in (("b1", b1), ("b2", b2)):
        require(0 <= value < 1, f"{label} = {value}", "must lie in [0, 1)", "try 0.9 and 0.99")

    def second(v: jax.Array, g: jax.Array) -> jax.Array:
        if moment == "yogi":
            return v - (1 - b2) * g * g * jnp.sign(v - g * g)
        return b2 * v + (1 - b2) * g * g

    def init(params: PyTree) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, jax.tree.map(lambda p: jnp.full_like(p, tau**2), params)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        v = jax.tree.map(second, state[1], grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), m, v), (m, v)

    return optax.GradientTransformation(init, update)


def server_rule(choice: Choice, learning_rate: float | None) -> optax.GradientTransformation:
    """An optimiser of the server; the arguments are those of `optimizer`.

    Raises:
      InputError: for an unknown name or option, or a step size that is missing, is given twice or
        is no positive number.
    """
    ready = isinstance(choice, optax.GradientTransformation)
    require(
        not (ready and learning_rate is not None),
        f"server_learning_rate = {learning_rate} with an optax transformation",
        "belongs to the transformation",
        "leave it out, or name an optimiser",
    )
    require(
        ready or (learning_rate is not None and np.isfinite(learning_rate) and learning_rate > 0),
        f"server_learning_rate = {learning_rate}",
        "must be positive and finite",
        "try 0.01 for yogi and adam, 1.0 for sgd",
    )
    if isinstance(choice, optax.GradientTransformation):
        server = optimizers.relaxed(choice)
        optimizers.trace(server, "server_optimizer")
        return server
    assert learning_rate is not None
    name, options = optimizers.named(choice, "server_optimizer")
    if name not in FEDOPT:
        return optimizers.make(choice, learning_rate, what="server_optimizer")
    check_options(options, f"option of {name!r}", scale_by_fedopt, derived=("moment",))
    scale = scale_by_fedopt(name, **options)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
