"""An optimiser on the server, for any method whose model changes by merges only."""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.errors import require
from fedjax_het.common.options import checked
from fedjax_het.contract.algorithm import Algorithm, Merged, Variables
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import Choice
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.nesting import Nested, nested
from fedjax_het.transforms.server.adaptive import server_rule


@checked
def optimizer(choice: Choice, *, learning_rate: float | None = None) -> Transformation:
    r"""An optimiser of the server, which takes minus the method's change as the gradient.

    The method's own server step comes first; its change $\Delta$ of the parameters becomes
    $-\Delta$, the pseudo-gradient. Running statistics are those of the method. The method itself
    sees its own step: FedEL's movements are those of the merge. Of two optimisers, the later one
    takes the step of the earlier one.

    The merge leaves coordinates that no client trained as they are, bit for bit; an optimiser with
    momentum still moves them, because their pseudo-gradient of zero is a gradient like any other.

    Args:
      choice: optimiser of the server. "yogi" and "adam" are those of FedOpt, with the options of
        `scale_by_fedopt`; every other name of `optimizers.OPTIMIZERS` is optax's, e.g. "sgd" (the
        plain method at a step size of 1), "momentum" (FedAvgM). Options are given as in `{"name":
        "yogi", "tau": 0.01}`. Or an optax transformation with its own step size.
      learning_rate: step size of an optimiser by name.

    Raises:
      InputError: for an unknown optimiser, and for a method that replaces its model outside the
        merge (a roll-back, training on the server), of which an optimiser would know nothing.

    References:
      Reddi et al., *Adaptive Federated Optimization*, 2021, Algorithms 1 and 2.
    """
    server = server_rule(choice, learning_rate)
    said = {"name": "optimizer", "choice": optimizers.described(choice)}
    said["learning_rate"] = learning_rate

    def transformation(algorithm: Algorithm) -> Algorithm:
        require(
            not algorithm.replaces,
            f"server.optimizer of {algorithm.name}",
            "takes the change of a merge as the gradient, and this method replaces its model "
            "outside the merge",
            "leave it out (for prfl also: recovery without roll_back)",
        )
        outer = nested(algorithm)

        def init(variables: Variables, key: jax.Array) -> Nested:
            return Nested(algorithm.init(variables, key), server.init(variables.params))

        def update(state: Nested, old: Variables, merged: Merged) -> tuple[Nested, Variables]:
            inner, new = algorithm.update(state.inner, old, merged)
            gradient = jax.tree.map(jnp.subtract, old.params, new.params)
            step, own = server.update(gradient, state.own, old.params)
            return Nested(inner, own), Variables(optax.apply_updates(old.params, step), new.stats)

        options = algorithm.options or {}
        options = {**options, "server": [*options.get("server", ()), said]}
        return outer._replace(init=init, update=update, options=options)

    return transformation
