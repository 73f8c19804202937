"""`covidcxr fit | validate | test`: LightningCLI, with the registry's names and honest scores."""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, CovidCXRError, did_you_mean
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.rows import calibrate, score_rows
from covidcxr.files import replace_file
from covidcxr.models import load_model
from covidcxr.recipe import Recipe, data_class, task_class, write_yaml
from covidcxr.registry import DATASETS
from covidcxr.tasks import ClassificationTask, SegmentationTask, Task

__all__ = ["TrainingCLI", "check", "run"]

_HELP = {
    "fit": "Train a model. Example: covidcxr fit --config mini-lungs --data.root DIR --output my-lungs",
    "validate": "Score a model on validation films. "
    "Example: covidcxr validate --config mini-lungs --data.root DIR --model.init_from my-lungs",
    "test": "Score a model on test films. "
    "Example: covidcxr test --config mini-lungs --data.root DIR --model.init_from my-lungs --output scores",
}
_CHIEF = ("dice_", "accuracy", "balanced_accuracy", "auroc_")


def run(words: list[str]) -> None:
    """Run `fit`, `validate` or `test` with the command-line words that follow `covidcxr`.

    Raises:
        CovidCXRError: If a setting is wrong.
    """
    _start(TrainingCLI, words)


def check(words: list[str]) -> None:
    """Build all that `run` would, and compare the model with the data, but train and score nothing.

    Raises:
        CovidCXRError: If a setting is wrong, the data are not where they should be, or weights cannot be had.
    """
    cli = _start(_CheckingCLI, words)
    cli.datamodule.setup()
    cli.model.check_data(cli.datamodule)


def _start(kind: type[TrainingCLI], words: list[str]) -> TrainingCLI:
    DATASETS.names()  # so that a YAML file may say `class_path: CSVDataModule`
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    before = sys.argv
    try:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own
            sys.argv = ["covidcxr", *_resolve(words, Path(scratch))]  # LightningCLI distrusts arguments given otherwise
            return kind(
                Task,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=_Parser,
                parser_kwargs={
                    "prog": "covidcxr",
                    "description": "For research only; not for clinical use.",
                    **{verb: {"description": words} for verb, words in _HELP.items()},
                },
            )
    except ValueError as error:
        # jsonargparse wraps what a constructor raises into pages of its own words; ours says it in one line.
        raise _own_error(error) or error from None
    finally:
        sys.argv = before


def _own_error(error: BaseException | None) -> CovidCXRError | None:
    while error is not None and not isinstance(error, CovidCXRError):
        error = error.__cause__ or error.__context__
    return error


class _Parser(LightningArgumentParser):
    """Says in one line which key is wrong, and the nearest valid one, in place of pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _own_error(ex) or ConfigError(_in_one_line(message))


def _in_one_line(message: str) -> str:
    """Shorten a message of jsonargparse, which tells of every type that a value was tried for."""
    for pattern in (r"Option '([\w.]+)' is not accepted", r"[Kk]ey \"?'?([\w.]+)\"?'? is not expected"):
        if found := re.findall(pattern, message):
            key = found[-1]
            return f"Unknown key {key!r} in the config. {did_you_mean(key.rpartition('.')[2], _known_keys())}"
    if found := re.findall(r"[Uu]nrecognized arguments: -*([^\s=]+)", message):
        return f"Unknown argument {found[0]!r}. {did_you_mean(found[0].rpartition('.')[2], _known_keys())}"
    if found := re.findall(r"arguments are required: ([\w., ]+)", message):
        return f"These settings are missing: {found[-1].strip()} (--data.root DIR names the data set's folder)."
    return " ".join(message.split())[:600]


def _known_keys() -> set[str]:
    ours = (SegmentationTask, ClassificationTask, Task, ModelConfig, PreprocessConfig, Trainer, CXRDataModule)
    classes: list[Callable[..., Any]] = [*ours, *(DATASETS.get(name) for name in DATASETS)]
    keys = {key for kind in classes for key in inspect.signature(kind).parameters}
    return keys | {"model", "data", "trainer", "config", "output", "coverage", "seed_everything", "ckpt_path"}


class TrainingCLI(LightningCLI):
    """LightningCLI that keeps the best weights, saves the model alone, and gives every score its interval."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--output` and `--coverage`."""
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="fit: folder for the trained model, which from_pretrained reads; test: folder for scores and rows",
        )

        parser.add_argument(
            "--coverage",
            type=float | None,
            default=None,
            help="fit: a classifier's set of plausible answers holds the truth this often (0.9); a film with more or "
            "less than one plausible answer is a 'cannot say'; null = always the most probable class",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer; unless the config names a ModelCheckpoint, keep the best and the last weights."""
        trainer = super().instantiate_trainer(**kwargs)
        self.history = History()
        trainer.callbacks.append(self.history)  # type: ignore[attr-defined]  # set where mypy does not see
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper.monitor is None and keeper.save_last is None:
            best = ModelCheckpoint(monitor=self.model.monitor, mode="max", save_last=True, filename="best-{epoch}")
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set where mypy does not see
            callbacks[callbacks.index(keeper)] = best
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Take a checkpoint's weights only: LightningCLI would merge its plain settings and then miss their class."""

    def before_fit(self) -> None:
        """Refuse what would lose a finished training."""
        settings = self.config[self.subcommand]
        if settings.coverage is not None and not 0 < settings.coverage < 1:
            raise ConfigError(f"coverage must be between 0 and 1 (or null), not {settings.coverage}.")
        if settings.output is not None:
            Path(settings.output).mkdir(parents=True, exist_ok=True)

    def before_validate(self) -> None:
        """Score a saved model as it was saved."""
        self._take_saved_model()

    def before_test(self) -> None:
        """Score a saved model as it was saved."""
        self._take_saved_model()

    def _take_saved_model(self) -> None:
        """Use the saved model whole, with its temperature and thresholds, and refuse a config that says otherwise."""
        settings = self.config[self.subcommand]
        source = settings.model.init_args.init_from
        if source is None:
            if settings.ckpt_path is None:
                raise ConfigError("There are no weights to score: give --model.init_from FOLDER or --ckpt_path FILE.")
            return
        saved, own = load_model(source, prefer=self.model.model.task), self.model.model
        theirs, ours = saved.config.to_dict(), own.config.to_dict()
        differing = [key for key in ours if key not in ("temperature", "thresholds") and ours[key] != theirs[key]]
        if differing:
            said = "; ".join(f"{key} is {ours[key]}, saved was {theirs[key]}" for key in differing)
            raise ConfigError(f"The config is not that of the model saved in {source}: {said}.")
        self.model.model = saved

    def after_fit(self) -> None:
        """Save the best model, without its optimiser; a classifier of exclusive classes is calibrated first."""
        output = self.config[self.subcommand].output
        if output is None or not self.trainer.is_global_zero:
            return
        keeper = self.trainer.checkpoint_callback
        best = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
        task = self.model
        if best:
            task.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        if isinstance(task, ClassificationTask) and task.model.config.mode != "multilabel":
            self._calibrate(task)
        with replace_file(Path(output) / "history.json") as draft:
            draft.write_text(json.dumps(self.history.epochs, indent=2) + "\n", encoding="utf-8")
        print_line(f"Saved {task.save_pretrained(output)} (weights of {Path(best).name or 'the last epoch'}).")

    def _calibrate(self, task: ClassificationTask) -> None:
        if not self.trainer.val_dataloaders:
            print_line("There are no validation films: the model is saved without calibration.")
            return
        self.trainer.validate(task, self.datamodule, verbose=False)
        if task.rows:
            task.model.config = calibrate(task.model.config, task.rows, self.config[self.subcommand].coverage)
        print_line(f"Temperature {task.model.config.temperature:.3f}, fitted on {len(task.rows)} validation films.")

    def after_validate(self) -> None:
        """Print and write the scores, each with its patient-clustered interval."""
        self._report()

    def after_test(self) -> None:
        """Print and write the scores, each with its patient-clustered interval."""
        self._report()

    def _report(self) -> None:
        rows = self.model.rows
        if not self.trainer.is_global_zero:
            return
        if not rows:
            raise ConfigError("There is no film to score: this split of the data is empty, or has no labels or masks.")
        output = Path(self.config[self.subcommand].output or self.trainer.log_dir or self.trainer.default_root_dir)
        output.mkdir(parents=True, exist_ok=True)
        scores = {"all": score_rows(rows)}
        sources = sorted({str(row["source"]) for row in rows})
        if len(sources) > 1:
            scores |= {source: score_rows([row for row in rows if row["source"] == source]) for source in sources}
        write_scores(rows, scores, output)
        print_scores(scores)
        print_line(f"Rows: {output / 'predictions.csv'}; scores: {output / 'scores.json'}")


class History(Callback):
    """Keeps what was logged in each epoch, in the checkpoint too, so that a resumed training has the whole curve.

    Attributes:
        epochs: From name ("train/loss", "val/auroc", ...) to value, an entry an epoch, with its number, from 0, as
            "epoch". `train/loss` is the mean over the epoch's batches.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._losses: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the losses of the epoch before."""
        self._losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take down a batch's loss, unless nothing could be learnt from it."""
        if outputs is not None:
            self._losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down the epoch; the checkpoint, which keeps it, is written after this."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        loss = torch.stack(self._losses).mean().item() if self._losses else math.nan
        entry: dict[str, float] = {**logged, "epoch": trainer.current_epoch, "train/loss": loss}
        self.epochs = [*(old for old in self.epochs if old["epoch"] < trainer.current_epoch), entry]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epochs = state_dict["epochs"]


class _CheckingCLI(TrainingCLI):
    """Builds everything and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def write_scores(rows: list[dict[str, Any]], scores: dict[str, dict[str, Estimate]], output: Path) -> None:
    """Write `predictions.csv` (a row a film) and `scores.json` (all figures with their intervals)."""
    import pandas as pd

    with replace_file(output / "predictions.csv") as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)
    plain = {part: {name: value.to_dict() for name, value in table.items()} for part, table in scores.items()}
    with replace_file(output / "scores.json") as draft:
        draft.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def print_scores(scores: dict[str, dict[str, Estimate]]) -> None:
    """Print one table: every score of all films, and the chief ones of each source."""
    from rich.console import Console
    from rich.table import Table

    table = Table("films of", "score", "value", "95 % interval", "films", "patients")
    for column in table.columns[:4]:
        column.no_wrap = True
    for part, estimates in scores.items():
        for name, estimate in estimates.items():
            if part == "all" or (name.startswith(_CHIEF) and not math.isnan(estimate.value)):
                interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
                cells = (part, name, f"{estimate.value:.3f}", interval, str(estimate.count), str(estimate.patients))
                table.add_row(*cells)
        table.add_section()
    Console().print(table)
    print_line("Intervals are bootstrapped over patients, not films.")


def print_line(text: str) -> None:
    """Print a line as it is."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, markup=False).print(text)


def _resolve(words: list[str], scratch: Path) -> list[str]:
    """Turn registry names after --data and --model, and recipes after --config, into what LightningCLI knows."""
    if words[0] in ("validate", "test") and not any(word.startswith("--verbose") for word in words):
        words = [*words, "--verbose", "false"]  # Lightning's own table has no intervals

    def config(name: str) -> str:
        return str(write_yaml(scratch / f"{uuid4().hex}.yaml", Recipe.read(name).base()))

    resolvers = {"--data": data_class, "--model": task_class, "--config": config, "-c": config}
    resolved: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if equals and flag in resolvers:
            resolved.append(f"{flag}={resolvers[flag](value)}")
        elif resolved and resolved[-1] in resolvers:
            resolved.append(resolvers[resolved[-1]](word))
        else:
            resolved.append(word)
    return resolved
