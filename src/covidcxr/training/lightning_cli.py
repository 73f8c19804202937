"""`covidcxr fit | validate | test`: LightningCLI, with the registry's names and honest scores."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from covidcxr.data import CXRDataModule, compute_mean_std
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.predictions.table import answered_rows, calibrate, score_rows
from covidcxr.io.atomic import replace_file
from covidcxr.models import ClassificationModel, NetworkModel, load_model
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.registry import DATASETS
from covidcxr.tasks import MultiTask, Task
from covidcxr.tasks.rows import add_traits
from covidcxr.training.parser_errors import in_one_line
from covidcxr.training.recipe import RECIPE_KEYS, Recipe, data_class, task_class, write_yaml

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TrainingCLI", "check", "run"]

_HELP = {
    "fit": "Train a model. Example: covidcxr fit --config mini-lungs --data.root DIR --output my-lungs",
    "validate": "Score a model on validation images. "
    "Example: covidcxr validate --config mini-lungs --data.root DIR --model.init_from my-lungs",
    "test": "Score a model on test images. "
    "Example: covidcxr test --config mini-lungs --data.root DIR --model.init_from my-lungs --output scores",
}
_CHIEF = ("dice_", "accuracy", "balanced_accuracy", "auroc_")


def run(words: list[str], callbacks: Sequence[Callback] = ()) -> None:
    """Run `fit`, `validate` or `test` with the command-line words that follow `covidcxr`.

    Args:
        words: The verb and its flags.
        callbacks: Join those of the config.

    Raises:
        CovidCXRError: If a setting is wrong.
    """
    _start(TrainingCLI, words, callbacks)


def check(words: list[str], *, images: bool = True) -> TrainingCLI:
    """Build all that `run` would, and compare the model with the data, but train and score nothing.

    Args:
        words: The verb and its flags.
        images: Read the data set too, and compare; without, only the settings are checked.

    Returns:
        What was built: `model` (the task), `datamodule`, `trainer`.

    Raises:
        CovidCXRError: If a setting is wrong, the data are not where they should be, or weights cannot be had.
    """
    cli = _start(_CheckingCLI, words)
    if images:
        cli.datamodule.setup()
        cli.model.check_data(cli.datamodule)
    return cli


def open_data(config: Mapping[str, Any], words: Sequence[str] = ()) -> CXRDataModule:
    """Build the data module of a config, without a model.

    Args:
        config: As LightningCLI reads it; its key `data` counts.
        words: Command-line words of `covidcxr fit`; those that begin with `--data` count.

    Raises:
        CovidCXRError: If a setting is wrong.
    """
    parser = _Parser()
    parser.add_lightning_class_args(CXRDataModule, "data", subclass_mode=True)
    ours = [
        text
        for word, value in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--data")
        for text in ((word,) if "=" in word or value.startswith("--") else (word, value))
    ]
    try:
        parsed = parser.parse_args([f"--data={json.dumps(config['data'])}", *ours])
        data: CXRDataModule = parser.instantiate_classes(parsed)["data"]
    except ValueError as error:
        raise _own_error(error) or error from None
    return data


def _start(kind: type[TrainingCLI], words: list[str], callbacks: Sequence[Callback] = ()) -> TrainingCLI:
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
                trainer_defaults={"callbacks": list(callbacks)},
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=_Parser,
                parser_kwargs={
                    "prog": "covidcxr",
                    "description": "For research only; not for clinical use.",
                    "allow_abbrev": False,
                    **{verb: {"description": words} for verb, words in _HELP.items() if verb in kind.subcommands()},
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
        raise _own_error(ex) or ConfigError(in_one_line(message, self._known()))

    def _known(self) -> set[str]:
        """Return the dotted keys that it takes, or that its only verb does, and those that a recipe has besides."""
        verbs: list[Any] = [action.choices for action in self._actions if action.dest == "subcommand"]
        parsers = [next(iter(choices.values())) for choices in verbs]
        keys = {action.dest for parser in parsers or [self] for action in parser._actions} - {"help"}
        return {key.removesuffix(".help") for key in keys} | (set(RECIPE_KEYS) if parsers else set())


class TrainingCLI(LightningCLI):
    """LightningCLI that keeps the best weights, saves the model alone, and gives every score its interval."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--output`, `--coverage` and `--compute_mean_std`."""
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
            help="fit: a classifier's set of plausible answers holds the truth this often (0.9); an image with more or "
            "less than one plausible answer is a 'cannot say'; null = always the most probable class",
        )

        parser.add_argument(
            "--compute_mean_std",
            type=bool,
            default=False,
            help="fit: normalise by the mean and standard deviation of the training images, in place of preprocess.mean "
            "and preprocess.std",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer; unless the config names a ModelCheckpoint, keep the best and the last weights."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"The trainer refused its settings: {' '.join(str(error).split())}") from error
        self.history = History()
        trainer.callbacks.append(self.history)  # type: ignore[attr-defined]  # set where mypy does not see
        keeper, named = trainer.checkpoint_callback, self.config_init[self.subcommand].trainer.callbacks or []
        if isinstance(keeper, ModelCheckpoint) and keeper not in (named if isinstance(named, list) else [named]):
            best = ModelCheckpoint(monitor=self.model.monitor, mode="max", filename="best-{epoch}")
            # save_last=True would write it only where the best one changes, and a kill would cost all epochs since.
            last = ModelCheckpoint(filename="last", enable_version_counter=False)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set where mypy does not see
            place = callbacks.index(keeper)
            callbacks[place : place + 1] = [best, last]  # in this order: the last one knows where the best one lies
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Take a checkpoint's weights only: LightningCLI would merge its plain settings and then miss their class."""

    def before_instantiate_classes(self) -> None:
        """Refuse what would lose a finished training."""
        coverage = self.config[self.subcommand].coverage
        if coverage is not None and not 0 < coverage < 1:
            raise ConfigError(f"coverage must be between 0 and 1 (or null), not {coverage}.")

    def before_fit(self) -> None:
        """Make the place for the model; normalise by the training images, if so asked."""
        settings = self.config[self.subcommand]
        if settings.output is not None:
            Path(settings.output).mkdir(parents=True, exist_ok=True)
        if settings.compute_mean_std:
            if self.model.preprocess.steps:
                raise ConfigError(
                    "compute_mean_std measures images as they are before preprocess.steps: leave one out."
                )
            mean, std = compute_mean_std(self.datamodule)
            self.model.set_normalization(mean, std)
            print_line(f"Training images: mean {mean:.4f}, standard deviation {std:.4f}.")

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
        if settings.ckpt_path is not None:
            raise ConfigError("Both init_from and ckpt_path name weights to score: set one of them to null.")
        for own in self.model.models.values():
            saved = load_model(source, prefer=own.task)
            assert isinstance(saved, NetworkModel)  # no task starts from an ensemble
            theirs, ours = saved.config.to_dict(), own.config.to_dict()
            if settings.compute_mean_std:
                ours["preprocess"] |= {key: theirs["preprocess"][key] for key in ("mean", "std")}
            differing = [key for key in ours if key not in ("temperature", "thresholds") and ours[key] != theirs[key]]
            if differing:
                said = "; ".join(f"{key} is {ours[key]}, saved was {theirs[key]}" for key in differing)
                raise ConfigError(f"The config is not that of the model saved in {source}: {said}.")
            own.config = saved.config  # the weights are there already
            own.mean.copy_(saved.mean)
            own.std.copy_(saved.std)

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
        for model in task.models.values():
            if isinstance(model, ClassificationModel) and model.config.mode != "multilabel":
                self._calibrate(model)
        print_line(f"Saved {save_models(task, Path(output))} (weights of {Path(best).name or 'the last epoch'}).")
        with replace_file(Path(output) / "history.json") as draft:  # last: who finds it finds all
            draft.write_text(json.dumps(self.history.epochs, indent=2) + "\n", encoding="utf-8")

    def _calibrate(self, model: ClassificationModel) -> None:
        if not self.trainer.val_dataloaders:
            print_line("There are no validation images: the model is saved without calibration.")
            return
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        rows = answered_rows(self.model.rows)
        if rows:
            model.config = calibrate(model.config, rows, self.config[self.subcommand].coverage)
        print_line(f"Temperature {model.config.temperature:.3f}, fitted on {len(rows)} validation images.")

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
            raise ConfigError("There is no image to score: this split of the data is empty, or has no labels or masks.")
        if isinstance(self.datamodule, CXRDataModule):
            rows = add_traits(rows, self.datamodule.records)
        output = Path(self.config[self.subcommand].output or self.trainer.log_dir or self.trainer.default_root_dir)
        output.mkdir(parents=True, exist_ok=True)
        scores = score_sources(rows)
        write_scores(rows, scores, output)
        print_scores(scores)
        print_line(f"Rows: {output / 'predictions.csv'}; scores: {output / 'scores.json'}")


class History(Callback):
    """Keeps what was logged in each epoch, in the checkpoint too, so that a resumed training has the whole curve.

    Attributes:
        epochs: From name ("train/loss", "val/auroc", ...) to value, an entry an epoch, with its number, from 0, as
            "epoch". `train/loss`, and its parts if it has several, are means over the epoch's batches.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._losses: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the losses of the epoch before."""
        self._losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take down a batch's loss and its parts, unless nothing could be learnt from it."""
        if outputs:
            self._losses.append({name: value.detach() for name, value in outputs.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down the epoch; the checkpoint, which keeps it, is written after this."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        means = {"train/loss": math.nan}
        for name in dict.fromkeys(name for losses in self._losses for name in losses):
            means[f"train/{name}"] = torch.stack([one[name] for one in self._losses if name in one]).mean().item()
        entry: dict[str, float] = {**logged, **means, "epoch": trainer.current_epoch}
        self.epochs = [*(old for old in self.epochs if old["epoch"] < trainer.current_epoch), entry]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epochs = state_dict["epochs"]


class _CheckingCLI(TrainingCLI):
    """Builds everything and runs nothing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer `fit` alone: a comparison is checked many times, and parsers take time."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def save_models(task: Task, folder: Path) -> Path:
    """Write what was trained into a folder: the two models of a `MultiTask` as a pipeline, where they make one."""
    if isinstance(task, MultiTask):
        for part in ("lung_segmenter", "infection_segmenter"):
            parts: dict[str, Any] = {part: task.segmenter, "classifier": task.classifier}
            try:
                pipeline = Pipeline(**parts)
            except ConfigError:  # the pipeline knows what a part must draw
                continue
            return pipeline.save_pretrained(folder)
    return task.save_pretrained(folder)


def score_sources(rows: list[dict[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Score all images ("all") and, where there are several, the images of each source."""
    scores = {"all": score_rows(rows)}
    sources = sorted({str(row["source"]) for row in rows})
    if len(sources) > 1:
        scores |= {source: score_rows([row for row in rows if row["source"] == source]) for source in sources}
    return scores


def write_scores(rows: list[dict[str, Any]], scores: dict[str, dict[str, Estimate]], output: Path) -> None:
    """Write `predictions.csv` (a row an image) and `scores.json` (all figures with their intervals)."""
    import pandas as pd

    with replace_file(output / "predictions.csv") as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)
    plain = {part: {name: value.to_dict() for name, value in table.items()} for part, table in scores.items()}
    with replace_file(output / "scores.json") as draft:
        draft.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def print_scores(scores: dict[str, dict[str, Estimate]]) -> None:
    """Print one table: every score of all images, and the chief ones of each source."""
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
    print_table(table)
    print_line("Intervals are bootstrapped over patients, not images.")


def print_table(table: Table) -> None:
    """Print a table; in a log it may be wide, since a log is read in an editor."""
    from rich.console import Console

    Console(width=None if Console().is_terminal else 200).print(table)


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
