"""A study that several processes share: opened by its URL, its trials claimed one by one and never lost with a process.

Optuna is imported here, so this module is imported only by functions that need it.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from covidcxr.errors import ConfigError

__all__ = ["NumberedSampler", "claims", "fail_dead", "finished", "open_study", "retry"]

HEARTBEAT = 15  # seconds between a running trial's signs of life
_RETRIES = 3  # of a trial whose processes died, so that one that kills them does not do so for ever
_ATTEMPTS = 5  # at opening: the first processes of a study may make its tables at once

Draws: TypeAlias = "dict[str, Any]"


def open_study(url: str, name: str, sampler: str, pruner: str, seed: int) -> optuna.Study:
    """Open a study, or begin it.

    Args:
        url: Its database, as SQLAlchemy writes URLs.
        name: Its name there.
        sampler: "tpe" (Bergstra et al. 2011) or "random".
        pruner: "median" (Golovin et al. 2017) or "none".
        seed: Of the draws.

    Raises:
        ConfigError: If the database cannot be had.
    """
    kinds: dict[str, type[TPESampler] | type[RandomSampler]] = {"tpe": TPESampler, "random": RandomSampler}
    with _experimental():
        storage = _open_storage(url)
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=NumberedSampler(kinds[sampler], seed),
            pruner=MedianPruner(n_warmup_steps=2) if pruner == "median" else NopPruner(),
            load_if_exists=True,
        )


def finished(trial: FrozenTrial) -> bool:
    """Whether a trial ran to its end: a value, pruned, or an error of its own. One that was killed did not."""
    over = (TrialState.COMPLETE, TrialState.PRUNED)
    return trial.state in over or (trial.state == TrialState.FAIL and "error" in trial.user_attrs)


def claims(trial: FrozenTrial) -> bool:
    """Whether a trial takes one of the places of a study: it is finished, runs, or waits for its retry."""
    return finished(trial) or trial.state in (TrialState.RUNNING, TrialState.WAITING)


def fail_dead(study: optuna.Study, parameters: int) -> None:
    """Fail the trials of processes that died, and queue them anew."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Killed between its claim and its first sign of life, a trial looks alive for ever. It has not drawn all yet.
        old = trial.datetime_start is not None and datetime.now() - trial.datetime_start > timedelta(
            seconds=4 * HEARTBEAT
        )
        if old and len(trial.params) < parameters:
            with suppress(UpdateFinishedTrialError, ValueError):  # another process settled it first
                study.tell(trial.number, state=TrialState.FAIL)


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was stopped: the next free process takes it, with the same parameters."""
    with _experimental():
        RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)(study, trial)


class NumberedSampler(BaseSampler):
    """Draws by the seed and the number of the trial, not by how many were drawn in this process.

    So a resumed search draws what an undisturbed one would have drawn, and two processes with one seed never draw the
    same.
    """

    def __init__(self, kind: type[TPESampler] | type[RandomSampler], seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._samplers: dict[int, BaseSampler] = {}

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._samplers:
            digest = hashlib.sha256(f"{self._seed}/{trial.number}".encode()).digest()
            self._samplers = {trial.number: self._kind(seed=int.from_bytes(digest[:4], "big"))}
        return self._samplers[trial.number]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `BaseSampler`."""
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Draws:
        """See `BaseSampler`."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler`."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def _open_storage(url: str) -> RDBStorage:
    try:
        shown = make_url(url).render_as_string()  # without the password
    except ArgumentError:
        raise ConfigError("--storage is no URL; it looks like postgresql+psycopg://USER@HOST/STUDIES.") from None
    lite = url.startswith("sqlite")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if lite else {},  # while another process writes
                heartbeat_interval=HEARTBEAT,
                grace_period=4 * HEARTBEAT,
                heartbeat_stale_trial_callback=retry,
            )
        except ImportError as error:
            raise ConfigError(f"{shown} needs a driver that is not installed: {error.__cause__ or error}.") from error
        except ArgumentError as error:
            raise ConfigError(f"{shown} names no kind of database that can be used: {error}.") from error
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            if attempt == _ATTEMPTS:
                raise ConfigError(
                    f"The study's database {shown} cannot be opened: {str(error).splitlines()[0]}"
                ) from error
            time.sleep(0.2 * attempt)
    raise AssertionError("unreachable")


@contextmanager
def _experimental() -> Iterator[None]:
    """Let Optuna's warnings of names that may change pass: the version is bounded below, and tests watch it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
