"""A run of a recipe, whole or in parts: fit, test and pictures, resumed after a kill from its folder."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.callbacks import Callback

from covidcxr import aliases, training
from covidcxr.data import CXRDataModule, Record, assign_splits
from covidcxr.data.records import labels_of
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.reliability import find_warning_signs
from covidcxr.evaluation.plots import draw_run
from covidcxr.evaluation.predictions.table import print_scores, read_rows, score_sources, write_scores
from covidcxr.io.folders import path_inside
from covidcxr.io.pretrained import read_json
from covidcxr.training.changes import Changes
from covidcxr.training.parser import apply_changes
from covidcxr.training.recipe import claim, recipe_paths, write_yaml
from covidcxr.training.session import Session
from covidcxr.utils.console import print_line

__getattr__ = partial(aliases.find, __name__)

__all__ = ["Fold", "pool_rows", "without_sources", "PooledRun", "Run"]


@dataclass(frozen=True)
class Fold:
    """A part of a cross-validated run: which images it tests.

    Attributes:
        name: Name of the part and its folder: "fold-0", "without-hannover".
        settings: Arguments of the data module by which it tests these images.

    Example:
        ```python
        from covidcxr.recipes.run import Fold

        config = Fold.folds(5)[1].apply({"data": {"class_path": "CSVDataModule"}})
        assert config["data"]["init_args"] == {"fold": 1, "folds": 5}
        ```
    """

    name: str
    settings: Mapping[str, Any]

    @classmethod
    def folds(cls, count: int) -> tuple[Fold, ...]:
        """Return the folds of a cross-validation; all images of a patient are in the same fold.

        Args:
            count: Number of folds, 3 or more.

        Returns:
            The folds, in order.

        Raises:
            ConfigError: If there are fewer than 3 folds: one tests, one validates, the others train.
        """
        if count < 3:
            raise ConfigError(f"--folds must be 3 or more (one tests, one validates, the others train), not {count}.")
        return tuple(cls(f"fold-{number}", {"fold": number, "folds": count}) for number in range(count))

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config whose data module tests the images of this part.

        Args:
            config: Config of the run: plain data, not changed.

        Returns:
            A changed copy.

        Raises:
            ConfigError: If the config names no data module, or holds images out already.
        """
        changed = copy.deepcopy(dict(config))
        data = changed.get("data")
        if not isinstance(data, dict) or "class_path" not in data:
            raise ConfigError("Folds and held-out sources need data.class_path in the config.")
        settings = data.setdefault("init_args", {})
        for name in ("fold", "folds", "hold_out_source"):
            if settings.get(name) is not None:
                raise ConfigError(f"data.init_args.{name} is set already: leave it out, or --folds and the like.")
        settings.update(self.settings)
        return changed


def without_sources(data: CXRDataModule, labels: bool = True) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """Return the sources that can be held out, each in turn, and why others cannot.

    Args:
        data: Data module with all images.
        labels: Whether the model learns labels; if not, it learns the masks in `mask_classes` only.

    Returns:
        A part for each source; and from each other source to the reason why it is never held out.

    Raises:
        ConfigError: If no source can be held out.
    """
    records = data.unsplit_records()
    everything = _learnt(records, data, labels)
    parts, reasons = [], {}
    for source in sorted({record.source for record in records if _learnt([record], data, labels)}):
        split = assign_splits(records, data.fractions, seed=data.split_seed, hold_out_source=source)
        left = _learnt([record for record in split if record.split == "train"], data, labels)
        if lacking := sorted(everything - left):
            reasons[source] = f"without {source} there is no image to learn {', '.join(lacking)} from"
        else:
            parts.append(Fold(f"without-{re.sub(r'[^A-Za-z0-9._-]+', '_', source)}", {"hold_out_source": source}))
    if not parts:
        why = "; ".join(reasons.values()) or "no image has a label or a mask"
        raise ConfigError(f"No source can be held out: {why}.")
    return tuple(parts), reasons


def pool_rows(parts: Iterable[tuple[Fold, Iterable[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Concatenate the rows of all parts.

    The images that a patient of a held-out source has in other sources are tested with them; they are counted in the
    part that holds out their own source.

    Args:
        parts: Each part, and the rows of its test images.

    Returns:
        The rows, each with the name of its part as `fold`.
    """
    pooled = []
    for part, rows in parts:
        source = part.settings.get("hold_out_source")
        pooled += [{**row, "fold": part.name} for row in rows if source is None or row["source"] == source]
    return pooled


def _learnt(records: Iterable[Record], data: CXRDataModule, labels: bool) -> set[str]:
    """Return the labels and the mask classes that can be learnt from images."""
    learnt: set[str] = set()
    for record in records:
        if labels:
            learnt.update(name for name in labels_of(record) if name in data.classes)
        learnt.update(name for name in record.mask_paths if name in data.mask_classes)
    return learnt


@dataclass(frozen=True)
class Run:
    """A run of a recipe, in a folder of its own.

    Attributes:
        name: Its variants, joined by "+"; "" if nothing is compared.
        folder: Holds config.yaml, model/ (for `from_pretrained`), scores.json, predictions.csv, history.json, pictures.
        config: The recipe's config: plain data.
        changes: Changes of the config.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.recipes import Run

        run = Run("focal+slow", Path("runs/focal+slow"), {"seed_everything": 0})
        assert not run.finished
        ```
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    changes: Changes = field(default_factory=Changes)

    @property
    def finished(self) -> bool:
        """Whether the run was fitted and tested."""
        return (self.folder / "scores.json").is_file()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config that is trained: complete, with the changes applied and without a logger.

        Nothing in it names this folder, so that `covidcxr fit --config` of the record writes elsewhere.
        """
        settings = apply_changes(self.config, self.changes)
        settings["trainer"] |= {"logger": False, "default_root_dir": None}
        return settings

    def _here(self, **changes: Any) -> dict[str, Any]:
        """Return the settings, with changes, for a training in this folder."""
        trainer = {**self.settings["trainer"], "default_root_dir": str(self.folder)}
        return {**self.settings, "trainer": trainer, **changes}

    def check(self) -> Session:
        """Build everything and train nothing.

        Returns:
            Task, data module and trainer.

        Raises:
            CovidCXRError: If a setting is wrong, or the recipe whose weights it starts from was not run.
        """
        start = ((self.settings.get("model") or {}).get("init_args") or {}).get("init_from")
        first = Path(str(start)).parent.name
        if start == f"runs/{first}/model" and first in recipe_paths() and not Path(start).exists():
            raise ConfigError(
                f"This starts from the weights of another recipe, and there is no {start}. Run it first: covidcxr "
                f"recipes run {first}; or name the folder of such a model by --model.init_from."
            )
        return training.check(self._here())

    def go(self) -> None:
        """Fit, test and draw, without the steps that are finished."""
        self.fit()
        if not self.finished:
            model = copy.deepcopy(self.settings["model"])
            model["init_args"]["init_from"] = str(self.folder / "model")
            training.test(self._here(model=model, output=str(self.folder), ckpt_path=None))
        self.tidy()

    def tidy(self) -> None:
        """Draw the pictures and remove the checkpoints, unless that was done."""
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir() or not any(self.folder.glob("*.png")):
            draw_run(self.folder)
            shutil.rmtree(checkpoints, ignore_errors=True)

    def fit(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train, unless that was done; an interrupted training is resumed.

        Args:
            callbacks: Callbacks of the Trainer, beside those of the config.
        """
        self.claim_folder()
        model, last = self.folder / "model", self.folder / "checkpoints" / "last.ckpt"
        if not (model / "history.json").is_file():  # written last
            resume = {"ckpt_path": str(last)} if last.is_file() else {}
            training.fit(self._here(output=str(model), **resume), callbacks=callbacks)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the scores of all test images: from name to value, low, high, count and patients.

        Returns:
            Plain data, as `scores.json` holds it.
        """
        scores: dict[str, dict[str, Any]] = read_json(self.folder / "scores.json")["all"]
        return scores

    def history(self) -> list[dict[str, float]]:
        """Return what was logged after each epoch; empty where no single training was.

        Returns:
            An entry an epoch, from name to value, as `history.json` of the model holds it.
        """
        path = self.folder / "model" / "history.json"
        epochs: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return epochs

    def claim_folder(self) -> None:
        """Take the folder for these settings, and write them into it.

        Raises:
            ConfigError: If it holds a run with other settings.
        """
        claim(self.folder, self.config, self.changes)
        write_yaml(self.folder / "config.yaml", self.settings)


@dataclass(frozen=True)
class PooledRun(Run):
    """A config that is trained and tested in parts, each on other images; see `covidcxr.recipes.run`.

    The runs of the parts are in folders below `folder`, which holds the rows of all parts, scored as a single test.

    Attributes:
        parts: Each part, and its run.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.recipes import PooledRun, Run
        from covidcxr.recipes.run import Fold

        run = Run("", Path("runs/folds"), {"data": {"class_path": "CSVDataModule"}})
        pooled = PooledRun.of(run, Fold.folds(3))
        assert [part.folder.name for _, part in pooled.parts] == ["fold-0", "fold-1", "fold-2"]
        ```
    """

    parts: Sequence[tuple[Fold, Run]] = ()

    @classmethod
    def of(cls, run: Run, folds: Sequence[Fold]) -> Self:
        """Split a run into parts.

        Args:
            run: The whole run.
            folds: The images that each part tests.

        Returns:
            The same run, in parts.

        Raises:
            ConfigError: If its config holds images out already.
        """
        parts = []
        for fold in folds:
            name = f"{run.name}/{fold.name}".lstrip("/")
            parts.append((fold, Run(name, path_inside(run.folder, fold.name), fold.apply(run.config), run.changes)))
        return cls(run.name, run.folder, run.config, run.changes, parts)

    def check(self) -> Session:
        """Build everything of every part that is not finished, and train nothing.

        Returns:
            Task, data module and trainer of the last part.

        Raises:
            CovidCXRError: If a setting is wrong.
        """
        sessions = [run.check() for _, run in self.parts if not run.finished]
        return sessions[-1] if sessions else super().check()

    def go(self) -> None:
        """Fit and test every part that is not finished, and score all parts together."""
        for number, (fold, run) in enumerate(self.parts, 1):
            if not run.finished:
                print_line(f"Part {number} of {len(self.parts)}: {fold.name}")
            run.go()
        rows = pool_rows((fold, read_rows(run.folder / "predictions.csv")) for fold, run in self.parts)
        scores = score_sources(rows)
        write_scores(rows, scores, self.folder, find_warning_signs(rows))
        draw_run(self.folder)
        print_scores(scores)

    def claim_folder(self) -> None:
        """Take the folder for these settings and parts, and those of the parts that are not finished.

        Raises:
            ConfigError: If one holds a run with other settings.
        """
        claim(self.folder, [self.config, [fold.name for fold, _ in self.parts]], self.changes)
        write_yaml(self.folder / "config.yaml", self.settings)
        for _, run in self.parts:
            if not run.finished:
                run.claim_folder()
