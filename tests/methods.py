"""The options and the small problem that a test of every registered method gives it."""

import functools

import jax
import numpy as np
from adel_helpers import adel_problem
from problems import digits_problem, exits_problem

small_adel = functools.partial(adel_problem, samples=8, hidden=(8,))

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
NARROW = {**TRAINING, "levels": (0, 1, 2, 1, 0, 2, 1, 2)}
BUDGET = {"learning_rate": 1.0, "rounds": 12, "total_s": 24.0}
DEADLINE = {**TRAINING, "deadline_s": 0.1}  # stops the slowest third of the devices
PRUNING = {
    **TRAINING,
    "interval_s": 0.02,
    "density": {"interval": 1},
    "recovery": {"patience": 1, "validate_on": "test"},
}
# Method to (problem, options); any other method gets `DEFAULT`.
SETTINGS = {
    "adel": (small_adel, BUDGET),
    "adel_drop": (small_adel, BUDGET),
    "adel_wait": (small_adel, {"learning_rate": 1.0}),
    "depthfl": (exits_problem, {**TRAINING, "levels": "even"}),
    "drop_stragglers": (digits_problem, DEADLINE),
    "dtfl": (exits_problem, TRAINING),
    "fedat": (digits_problem, {**TRAINING, "tiers": 2}),
    "fedbuff": (digits_problem, {**TRAINING, "buffer_size": 4}),
    "feddrop": (digits_problem, {**TRAINING, "rates": (1.0, 0.75, 0.5, 0.25)}),
    "feddyn": (digits_problem, {**TRAINING, "alpha": 0.1}),
    "fedel": (exits_problem, TRAINING),
    "fedfix": (digits_problem, {**TRAINING, "interval_s": 0.12}),
    "fedgkt": (exits_problem, {**TRAINING, "server_epochs": (2,)}),
    "fedopt": (
        digits_problem,
        {**TRAINING, "server_optimizer": "momentum", "server_learning_rate": 0.5},
    ),
    "fedpmt": (digits_problem, {**TRAINING, "depths": (1, 3)}),
    "fedprox": (digits_problem, DEADLINE),
    "fedrolex": (digits_problem, {**NARROW, "rates": (1.0, 0.5, 0.25)}),
    "fjord": (digits_problem, {**NARROW, "rates": (1.0, 0.6, 0.3)}),
    "heterofl": (digits_problem, {**NARROW, "rates": (1.0, 0.5, 0.25)}),
    "nested_mask_sync": (digits_problem, {**TRAINING, "density": {"interval": 1}}),
    "prfl": (digits_problem, PRUNING),
    "salf": (small_adel, BUDGET),
    "scalefl": (exits_problem, {**TRAINING, "levels": "even", "gamma": 0.5}),
    "sub_fedavg": (digits_problem, {**TRAINING, "epochs": 2, "least_accuracy": 0.0}),
}
DEFAULT = (digits_problem, TRAINING)


def choosing(algorithm, choose):
    """The method with the rows `choose(round, count)` of its plans."""

    def plan(state, variables, situation):
        plan, state = algorithm.plan(state, variables, situation)
        order = choose(situation.round, len(plan.clients))
        columns = ("clients", "steps", "batch", "weight", "timing", "rows", "notes")
        chosen = {
            name: jax.tree.map(lambda a: np.asarray(a)[order], getattr(plan, name))
            for name in columns
        }
        return plan._replace(routes=[plan.routes[i] for i in order], **chosen), state

    return algorithm._replace(plan=plan)
