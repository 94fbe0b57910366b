"""The trials of a sweep in optuna's storage: a journal file that processes and machines share."""

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import refusing
from fedjax_het.sweeps.results import Trial
from fedjax_het.sweeps.space import Space, Span

JOURNAL = "trials.log"
# The name under which a trial keeps what was measured.
_RUNS = "runs"


def load_optuna() -> Any:
    """The package optuna; raises `InputError` if it is missing."""
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise InputError(
            "sweep: optuna is not installed; install it with pip install 'fedjax-het[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Store:
    """The trials of all methods: one study of optuna by the label of each.

    All trials are in the storage from the start, waiting. A process works on a trial while it holds
    the lock of the trial's directory; the storage itself gives nobody the right to one. Only one
    process at a time may make a store of a directory.

    Args:
      root: directory of the journal, which exists.
      spaces: spaces by label.
      given: values by label and trial; a trial with empty ones is drawn when it begins.
      maximize: whether a larger value is better.
      seed: seed of the sampler.
    """

    def __init__(
        self,
        root: Path,
        spaces: Mapping[str, Space],
        given: Mapping[str, Sequence[Mapping[str, Any]]],
        maximize: bool,
        seed: int,
    ):
        self._optuna, self._spaces, self._seed = load_optuna(), spaces, seed
        self._counts = {label: len(values) for label, values in given.items()}
        journal, storages = root / JOURNAL, self._optuna.storages
        try:
            with refusing(str(journal)):
                backend = storages.journal.JournalFileBackend(str(journal))
                self._storage = storages.JournalStorage(backend)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{journal}: is damaged ({error}); restore it, or name another work directory"
            ) from None
        self._studies = {
            label: self._optuna.create_study(
                storage=self._storage,
                study_name=label,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
                pruner=self._optuna.pruners.NopPruner(),
            )
            for label in spaces
        }
        for label, values in given.items():
            # A process that was killed here has left the first ones.
            for each in values[len(self._frozen(label)) :]:
                self._studies[label].enqueue_trial(dict(each))

    def _frozen(self, label: str) -> list[Any]:
        return self._studies[label].get_trials(deepcopy=False)

    def trials(self, label: str) -> list[Trial | None]:
        """The trials of a method by number; None for those that are not over."""
        return [_over(trial) for trial in self._frozen(label)[: self._counts[label]]]

    def begin(self, label: str, number: int) -> dict[str, Any]:
        """The values of a trial by path, which this process works on from now on.

        A trial that was begun before keeps its values. What "tpe" draws depends on the seed, the
        number, and the trials that are over.
        """
        optuna = self._optuna
        address = np.random.SeedSequence([self._seed, zlib.crc32(label.encode()), number])
        sampler = optuna.samplers.TPESampler(seed=int(address.generate_state(1)[0]))
        # A study remembers the trials that it has shown a sampler once; a new one reads them again.
        study = optuna.load_study(study_name=label, storage=self._storage, sampler=sampler)
        study_id = self._storage.get_study_id_from_name(label)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.RUNNING)
        trial = optuna.trial.Trial(study, trial_id)
        values: dict[str, Any] = {}
        for path, choice in self._spaces[label].items():
            if not isinstance(choice, Span):
                values[path] = trial.suggest_categorical(path, choice)
            elif choice.whole:
                values[path] = trial.suggest_int(path, choice.low, choice.high, log=choice.log)
            else:
                values[path] = trial.suggest_float(path, choice.low, choice.high, log=choice.log)
        return values

    def end(
        self, label: str, number: int, value: float | None, stopped: bool, runs: list[Any]
    ) -> None:
        """Writes the outcome of a trial; see `Trial`."""
        states, study = self._optuna.trial.TrialState, self._studies[label]
        study_id = self._storage.get_study_id_from_name(label)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.set_trial_user_attr(trial_id, _RUNS, runs)
        if stopped:
            study.tell(number, state=states.PRUNED)
        elif value is None:
            study.tell(number, state=states.FAIL)
        else:
            study.tell(number, value)


def _over(trial: Any) -> Trial | None:
    """The trial of the storage as one of ours; None if it waits or runs."""
    if not trial.state.is_finished():
        return None
    stopped = trial.state.name == "PRUNED"
    value = None if stopped or not trial.values else trial.values[0]
    assert value is None or not math.isnan(value)
    return Trial(trial.number, dict(trial.params), value, stopped, trial.user_attrs[_RUNS])
