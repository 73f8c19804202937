"""Training, validation and testing of a config with Lightning's Trainer, each as a function.

The command line, recipes, folds, sweeps and the trials of `tune` all train through these functions.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from covidcxr.data import CXRDataModule, compute_mean_std
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import find_warning_signs, temperature_signs
from covidcxr.evaluation.predictions.table import print_scores, score_sources, write_scores
from covidcxr.models import NetworkModel, load_model
from covidcxr.tasks import Task
from covidcxr.tasks.processes import explain_lost
from covidcxr.tasks.rows import add_traits
from covidcxr.training.parser import make_parser, own_errors, read_settings, to_plain
from covidcxr.training.saving import ConfigRecord, History, print_warnings, save_best, save_models
from covidcxr.utils.console import print_line
from covidcxr.utils.plain import user_path
from covidcxr.utils.threads import QUIET

__all__ = ["Session", "build", "check", "fit", "save_models", "test", "train", "validate"]

Scores = dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Session:
    """The objects that a config builds.

    Attributes:
        settings: All settings, defaults included.
        task: The task, with its model.
        data: The data module.
        trainer: Lightning's Trainer.
        history: Keeps the scores of each epoch.

    Example:
        ```python
        from covidcxr.training import build

        model = {"task": "classification", "network": "cnn19", "classes": ["covid19", "normal"], "positive": "covid19"}
        session = build({
            "model": {"class_path": "ClassificationTask", "init_args": {"model": model}},
            "data": {"class_path": "CSVDataModule", "init_args": {"root": "phantoms"}},
            "trainer": {"max_epochs": 1, "logger": False, "accelerator": "cpu"},
        })
        assert session.trainer.max_epochs == 1
        ```
    """

    settings: Namespace
    task: Task
    data: LightningDataModule
    trainer: Trainer
    history: History

    @property
    def output(self) -> Path | None:
        """The folder for the trained model or the scores; None = the config names none."""
        return None if self.settings.output is None else user_path(self.settings.output)


def build(config: Mapping[str, Any], *, callbacks: Sequence[Callback] = (), record: bool = False) -> Session:
    """Build the task, the data module and the Trainer of a config; nothing is read and nothing trained.

    Args:
        config: Plain data: `model`, `data`, `trainer` and the other keys of `covidcxr fit`, as in the YAML of a recipe.
        callbacks: Callbacks of the Trainer, beside those of the config.
        record: Write `config.yaml` into the log folder when the Trainer begins.

    Returns:
        Task, data module and trainer.

    Raises:
        CovidCXRError: If a setting is wrong, or weights cannot be loaded.
    """
    settings = read_settings(config)
    _seed(settings.seed_everything)
    with own_errors():
        objects = make_parser().instantiate_classes(settings)
    if isinstance(objects.data, CXRDataModule):
        objects.data.use_geometry(objects.model.preprocess)
    history = History()
    more = [*callbacks, history, *([ConfigRecord(to_plain(settings))] if record else [])]
    of_trainer = dict(objects.trainer.items())
    if of_trainer.get("default_root_dir") is None and settings.output is not None:
        of_trainer["default_root_dir"] = str(user_path(settings.output))  # of logs and checkpoints, else where it runs
    trainer = _make_trainer(of_trainer, more, objects.model.monitor)
    return Session(settings, objects.model, objects.data, trainer, history)


def check(config: Mapping[str, Any], *, images: bool = True) -> Session:
    """Build everything for a training, and check that model and data match, but train nothing.

    Args:
        config: See `build`.
        images: Also read the list of images.

    Returns:
        Task, data module and trainer.

    Raises:
        CovidCXRError: If a setting is wrong, a file of the data set is missing, or weights cannot be loaded.
    """
    with _quiet_lightning():
        session = build(config)
        if images:
            session.data.setup("fit")
        session.task.check_data(session.data)
    return session


def fit(config: Mapping[str, Any], *, callbacks: Sequence[Callback] = (), record: bool = False) -> Session:
    """Train a model, and save the best one, calibrated, into the folder `output` of the config.

    Args:
        config: See `build`. `ckpt_path` names a checkpoint to resume from; "last" keeps checkpoints in the folder
            `checkpoints` of `output`, and resumes from the last of them if there is one.
        callbacks: Callbacks of the Trainer, beside those of the config.
        record: Write `config.yaml` into the log folder.

    Returns:
        Task, data module and trainer, after the training.

    Raises:
        CovidCXRError: If a setting is wrong.
        ProcessLostError: If another process of the training has ended.
    """
    with _quiet_lightning():
        session = build(config, callbacks=callbacks, record=record)
        if session.output is not None:
            session.output.mkdir(parents=True, exist_ok=True)
        if session.settings.compute_mean_std:
            _normalize(session)
        with explain_lost(session.trainer):
            session.trainer.fit(session.task, session.data, **_resume(session))
            if session.output is not None:
                save_best(
                    session.trainer,
                    session.task,
                    session.data,
                    session.history,
                    session.output,
                    session.settings.coverage,
                    session.settings.coverage_by,
                )
            session.trainer.strategy.barrier("saved")  # whatever follows finds the files, in every process
    return session


def train(
    task: Task,
    data: LightningDataModule,
    output: str | os.PathLike[str],
    *,
    max_epochs: int = 20,
    coverage: float | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> Trainer:
    """Train a task as `covidcxr fit` does: keep the weights of the best epoch, calibrate, and save the model.

    Args:
        task: What is trained; afterwards it has the weights of its best epoch, by the score `task.monitor`.
        data: The images.
        output: Folder for the model, which `from_pretrained` reads, `history.json` and the checkpoints.
        max_epochs: How often every image is trained on.
        coverage: Coverage of a classifier's sets of plausible classes, in (0, 1); it abstains where its set does not
            hold exactly one class. None = it never abstains.
        trainer: Further arguments of Lightning's `Trainer`: `accelerator`, `precision`, `callbacks`, ...

    Returns:
        Lightning's Trainer, for `trainer.test(task, data)`.

    Raises:
        ConfigError: If task and data do not match, the Trainer refuses its settings, or the training diverged.
    """
    folder, history = user_path(output), History()
    settings = {"enable_checkpointing": None, "logger": False, "default_root_dir": folder, "max_epochs": max_epochs}
    with _quiet_lightning():
        folder.mkdir(parents=True, exist_ok=True)
        runner = _make_trainer({**settings, **(trainer or {})}, [history], task.monitor)
        runner.fit(task, data)
        save_best(runner, task, data, history, folder, coverage)
    return runner


def validate(config: Mapping[str, Any], *, record: bool = False) -> Scores:
    """Score a model on the validation images; print the scores and write them into the folder `output`.

    Args:
        config: See `build`. `model.init_args.init_from` names a saved model, or `ckpt_path` a checkpoint.
        record: Write `config.yaml` into the log folder.

    Returns:
        Scores with their intervals: of all images ("all") and of each source, by name.

    Raises:
        CovidCXRError: If a setting is wrong, or there is nothing to score.
    """
    return _score(config, lambda session: session.trainer.validate, record)


def test(config: Mapping[str, Any], *, record: bool = False) -> Scores:  # noqa: PT028 (no test)
    """Score a model on the test images; print the scores and write them into the folder `output`.

    Args:
        config: See `build`. `model.init_args.init_from` names a saved model, or `ckpt_path` a checkpoint.
        record: Write `config.yaml` into the log folder.

    Returns:
        Scores with their intervals: of all images ("all") and of each source, by name.

    Raises:
        CovidCXRError: If a setting is wrong, or there is nothing to score.
    """
    return _score(config, lambda session: session.trainer.test, record)


def _score(config: Mapping[str, Any], stage: Callable[[Session], Callable[..., Any]], record: bool) -> Scores:
    with _quiet_lightning():
        session = build(config, record=record)
        _take_saved_model(session)
        stage(session)(session.task, session.data, verbose=session.settings.verbose, **_checkpoint(session.settings))
        scores = _report(session)
        session.trainer.strategy.barrier("scored")
        return scores


def _seed(seed: bool | int) -> None:
    if seed is not False:
        seed_everything(None if seed is True else seed, workers=True)


def _checkpoint(settings: Namespace) -> dict[str, Any]:
    # Lightning's own default unpickles a file on the disk, which runs what it holds.
    return {"ckpt_path": settings.ckpt_path, "weights_only": settings.weights_only is not False}


def _resume(session: Session) -> dict[str, Any]:
    """Return where the training goes on: "last" is its own last checkpoint, if there is one."""
    keepers = [each for each in session.trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    chosen = _checkpoint(session.settings)
    if session.settings.ckpt_path != "last" or not any(each.filename == "last" for each in keepers):
        return chosen  # keepers that the config names are Lightning's to search
    if session.output is None:
        raise ConfigError("ckpt_path=last goes on with the training of a folder: name it by --out.")
    folder = session.output / "checkpoints"
    for keeper in keepers:
        keeper.dirpath = str(folder.absolute())
    last = folder / "last.ckpt"
    return chosen | {"ckpt_path": str(last) if last.is_file() else None}


def _make_trainer(settings: dict[str, Any], more: Sequence[Callback], monitor: str) -> Trainer:
    """Build the Trainer; unless the config names a ModelCheckpoint, keep the best and the last weights."""
    if QUIET.get():
        settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    named = settings.pop("callbacks", None) or []
    named = list(named) if isinstance(named, list) else [named]
    if settings["enable_checkpointing"] is not False and not any(isinstance(each, ModelCheckpoint) for each in named):
        best = ModelCheckpoint(monitor=monitor, mode="max", filename="best-{epoch}")
        # save_last=True would write it only when the best one changes, and a kill would lose all epochs since.
        last = ModelCheckpoint(filename="last", enable_version_counter=False)
        named += [best, last]  # in this order: `last` stores the path of `best`
    try:
        trainer = Trainer(**settings, callbacks=[*named, *more])
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"The trainer refused its settings: {' '.join(str(error).split())}") from error
    except KeyError as error:  # a launcher's variable of the environment
        raise ConfigError(f"The trainer found no {error} in the environment, where a launcher sets it.") from error
    _check_processes(trainer)
    return trainer


def _check_processes(trainer: Trainer) -> None:
    """Refuse a launcher's processes that the Trainer does not know of: each would train alone, into one folder."""
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_NTASKS"
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    started = "" if interactive and name == "SLURM_NTASKS" else os.environ.get(name, "")
    if started.isdecimal() and int(started) != trainer.world_size:
        raise ConfigError(
            f"{name}={started} in the environment says how many processes were started, but the Trainer uses "
            f"{trainer.world_size}: set --trainer.devices and --trainer.num_nodes so that their product is {started} "
            f"(and --trainer.strategy ddp), or start one process."
        )


def _normalize(session: Session) -> None:
    """Normalise by the mean and standard deviation of the training images."""
    if session.task.preprocess.steps:
        raise ConfigError("compute_mean_std measures images as they are before preprocess.steps: leave one out.")
    assert isinstance(session.data, CXRDataModule)
    mean, std = compute_mean_std(session.data)
    session.task.set_normalization(mean, std)
    if session.trainer.is_global_zero:
        print_line(f"Training images: mean {mean:.4f}, standard deviation {std:.4f}.")


def _take_saved_model(session: Session) -> None:
    """Take the config of the saved model, with its temperature and thresholds; another config is an error."""
    settings = session.settings
    source = settings.model.init_args.get("init_from")
    if source is None:
        if settings.ckpt_path is None:
            raise ConfigError("There are no weights to score: give --model.init_from FOLDER or --ckpt_path FILE.")
        return
    if settings.ckpt_path is not None:
        raise ConfigError("Both init_from and ckpt_path name weights to score: set one of them to null.")
    for own in session.task.models.values():
        saved = load_model(source, prefer=own.task)
        assert isinstance(saved, NetworkModel)  # no task starts from an ensemble
        _check_same(own, saved, source, mean_std=not settings.compute_mean_std)
        own.config = saved.config  # the weights are there already
        own.mean.copy_(saved.mean)
        own.std.copy_(saved.std)


def _check_same(own: NetworkModel, saved: NetworkModel, source: str, *, mean_std: bool) -> None:
    """Compare the config of a model with the saved one; the results of calibration may differ."""
    theirs, ours = saved.config.to_dict(), own.config.to_dict()
    if not mean_std:
        ours["preprocess"] |= {key: theirs["preprocess"][key] for key in ("mean", "std")}
    free = ("temperature", "thresholds", "positive", "coverage", "coverage_by")
    different = [key for key in ours if key not in free and ours[key] != theirs[key]]
    if different:
        differences = "; ".join(f"{key} is {ours[key]}, saved was {theirs[key]}" for key in different)
        raise ConfigError(f"The config is not that of the model saved in {source}: {differences}.")


def _report(session: Session) -> Scores:
    """Print and write the scores, each with its 95 % confidence interval; only the first process does."""
    rows = session.task.rows
    if not rows:
        raise ConfigError("There is no image to score: this split of the data is empty, or has no labels or masks.")
    output = session.output or Path(session.trainer.log_dir or session.trainer.default_root_dir)
    if not session.trainer.is_global_zero:
        return {}
    if isinstance(session.data, CXRDataModule):
        rows = add_traits(rows, session.data.records)
    output.mkdir(parents=True, exist_ok=True)
    scores = score_sources(rows)
    temperatures = [model.config.temperature for model in session.task.models.values()]
    signs = [*find_warning_signs(rows), *(sign for value in temperatures for sign in temperature_signs(value))]
    write_scores(rows, scores, output, signs)
    print_scores(scores)
    print_warnings(signs)
    print_line(f"Rows: {output / 'predictions.csv'}; scores: {output / 'scores.json'}")
    return scores


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's tips, a warning about its own code, and what it says of every small training."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def is_no_tip(message: logging.LogRecord) -> bool:
        return "Tip:" not in str(message.msg)

    logger.addFilter(is_no_tip)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec")
            warnings.filterwarnings("ignore", message=".*tensorboardX")
            warnings.filterwarnings("ignore", message="The number of training batches .* logging interval")
            warnings.filterwarnings("ignore", message="Using `DistributedSampler`")  # tasks count each image once
            yield
    finally:
        logger.removeFilter(is_no_tip)
