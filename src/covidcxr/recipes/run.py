"""One run of a recipe, whole or in parts: fit, test and pictures, in a folder that survives a kill."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.callbacks import Callback

from covidcxr import training
from covidcxr.evaluation.plots import draw_run
from covidcxr.evaluation.predictions.table import print_scores, read_rows, score_sources, write_scores
from covidcxr.io.pretrained import read_json
from covidcxr.recipes.cross_validation import HeldOut, pool_rows
from covidcxr.training.parser import apply_words
from covidcxr.training.recipe import claim, write_yaml
from covidcxr.training.session import Session
from covidcxr.utils.console import print_line

__all__ = ["PooledRun", "Run"]


@dataclass(frozen=True)
class Run:
    """One run of a recipe, in a folder of its own.

    Attributes:
        name: The variants that it stands for, joined by "+"; "" if nothing is compared.
        folder: Holds config.yaml, model/ (for `from_pretrained`), scores.json, predictions.csv, history.json, pictures.
        config: The recipe's config: plain data.
        words: Command-line words that change the config.

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
    words: Sequence[str] = ()

    @property
    def finished(self) -> bool:
        """Whether the run was fitted and tested."""
        return (self.folder / "scores.json").is_file()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as it runs: complete, with the words applied, in this folder and without a logger."""
        settings = apply_words(self.config, self.words)
        settings["trainer"] |= {"logger": False, "default_root_dir": str(self.folder)}
        return settings

    def check(self) -> Session:
        """Build everything and train nothing.

        Returns:
            What was built.

        Raises:
            CovidCXRError: If a setting is wrong.
        """
        self.claim_folder()
        return training.check(self.settings)

    def go(self) -> None:
        """Fit, test and draw; what was reached before is not repeated."""
        self.fit()
        if not self.finished:
            model = copy.deepcopy(self.settings["model"])
            model["init_args"]["init_from"] = str(self.folder / "model")
            training.test({**self.settings, "model": model, "output": str(self.folder), "ckpt_path": None})
        self.tidy()

    def tidy(self) -> None:
        """Draw, and remove the checkpoints, which nobody needs any more; a kill may have come before that."""
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir() or not any(self.folder.glob("*.png")):
            draw_run(self.folder)
            shutil.rmtree(checkpoints, ignore_errors=True)

    def fit(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train, unless that was done; a training that was interrupted goes on.

        Args:
            callbacks: Join those of the config.
        """
        self.claim_folder()
        model, last = self.folder / "model", self.folder / "checkpoints" / "last.ckpt"
        if not (model / "history.json").is_file():  # the last that is written
            resume = {"ckpt_path": str(last)} if last.is_file() else {}
            training.fit({**self.settings, "output": str(model), **resume}, callbacks=callbacks)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the scores of all test images: from name to value, low, high, count and patients."""
        scores: dict[str, dict[str, Any]] = read_json(self.folder / "scores.json")["all"]
        return scores

    def claim_folder(self) -> None:
        """Take the folder for these settings, and write them into it.

        Raises:
            ConfigError: If it holds a run with other settings.
        """
        claim(self.folder, self.config, self.words)
        write_yaml(self.folder / "config.yaml", self.settings)


@dataclass(frozen=True)
class PooledRun(Run):
    """One config, trained and tested in parts, each on other test images; see `covidcxr.pooling`.

    The parts lie in folders below `folder`, which holds the rows of all of them, scored as one test.

    Attributes:
        parts: What each part tests, and its run.
    """

    parts: Sequence[tuple[HeldOut, Run]] = ()

    @classmethod
    def of(cls, run: Run, held_out: Sequence[HeldOut]) -> Self:
        """Split a run into parts.

        Raises:
            ConfigError: If its config holds images out already.
        """
        parts = [
            (
                part,
                Run(f"{run.name}/{part.name}".lstrip("/"), run.folder / part.name, part.apply(run.config), run.words),
            )
            for part in held_out
        ]
        return cls(run.name, run.folder, run.config, run.words, parts)

    def check(self) -> Session:
        """Build everything of every part that is not finished, and train nothing.

        Returns:
            What was built of the last part.

        Raises:
            CovidCXRError: If a setting is wrong.
        """
        sessions = [part.check() for _, part in self.parts if not part.finished]
        return sessions[-1] if sessions else super().check()

    def go(self) -> None:
        """Fit and test every part that is not finished, and score all of them together."""
        for number, (part, run) in enumerate(self.parts, 1):
            if not run.finished:
                print_line(f"Part {number} of {len(self.parts)}: {part.name}")
            run.go()
        rows = pool_rows((part, read_rows(run.folder / "predictions.csv")) for part, run in self.parts)
        scores = score_sources(rows)
        write_scores(rows, scores, self.folder)
        draw_run(self.folder)
        print_scores(scores)

    def claim_folder(self) -> None:
        """Take the folder for these settings and parts, and write them into it.

        Raises:
            ConfigError: If it holds a run with other settings.
        """
        claim(self.folder, [self.config, [part.name for part, _ in self.parts]], self.words)
        write_yaml(self.folder / "config.yaml", self.settings)
