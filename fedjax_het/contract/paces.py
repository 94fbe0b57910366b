"""What a method lets another pace than its own do to its tasks."""

from typing import Literal, NamedTuple

from fedjax_het.common.errors import require

# True, or the reason why not, which follows "cannot be composed: ".
Allowed = Literal[True] | str


class Paces(NamedTuple):
    """What another pace may do to the tasks of a method; each field is True or the reason why not.

    An author who declares nothing gets every pace that ends a round for all of its tasks at once,
    because such a pace asks for nothing new: a merge leaves clients out already if their updates
    are not finite, `Report.plan` has only the tasks that count, and local steps are traced. A pace
    whose tasks overlap asks for more, so it must be declared.

    Attributes:
      replace: whether the pace may be replaced at all. Not if the plan, the merge or the prices
        follow the method's own pace.
      drop: whether tasks may be left out of a merge although they were dispatched. Not if `observe`
        must see every task, or the price of one task depends on the others.
      stop: whether a task may end after some of its local steps and upload what it has. Not if
        `rows` repeat the number of steps, if the steps do not take equal shares of the compute
        time, or if the uploaded bytes grow with the steps.
      overlap: whether a task may be merged into a later model than that from which it started,
        together with tasks that started from other models, and without those that are still at
        work. Not if the merge, `update`, `observe` or the state count in whole rounds. `shared` is
        then that of the newest plan in `finalize` and `observe`, and of each client's own plan in a
        `Chunk`.
    """

    replace: Allowed = True
    drop: Allowed = True
    stop: Allowed = True
    overlap: Allowed = "it does not declare that its tasks may overlap (Algorithm.paces)"

    def require(self, method: str, pace: str, *needs: str) -> None:
        """Raises `InputError` unless a pace with these needs fits.

        Args:
          method: name of the method.
          pace: name of the pace.
          *needs: names of fields besides `replace`.
        """
        for need in ("replace", *needs):
            allowed = getattr(self, need)
            require(
                allowed is True,
                f"pace {pace} of {method}",
                f"cannot be composed: {allowed}",
                "keep the method's own pace, or take fedavg, fedpmt or another method",
            )
