"""One run of a recipe, whole or in parts: fit, test and pictures, in a folder that survives a kill."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.callbacks import Callback

from covidcxr.evaluation import read_rows
from covidcxr.evaluation.plots import draw_run
from covidcxr.io.pretrained import read_json
from covidcxr.recipes.cross_validation import HeldOut, pool_rows
from covidcxr.training.lightning_cli import check, print_line, print_scores, run, score_sources, write_scores
from covidcxr.training.recipe import claim, write_yaml

__all__ = ["PooledRun", "Run"]


@dataclass(frozen=True)
class Run:
    """One run of a recipe, in a folder of its own.

    Attributes:
        name: The variants that it stands for, joined by "+"; "" if nothing is compared.
        folder: Holds config.yaml, model/ (for `from_pretrained`), scores.json, predictions.csv, history.json, pictures.
        config: What LightningCLI reads.
        words: Command-line words that change the config.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    words: Sequence[str] = ()

    @property
    def finished(self) -> bool:
        """Whether the run was fitted and tested."""
        return (self.folder / "scores.json").is_file()

    def check(self) -> None:
        """Build everything and train nothing.

        Raises:
            CovidCXRError: If a setting is wrong.
        """
        check(self.fit_words())

    def go(self) -> None:
        """Fit, test and draw; what was reached before is not repeated."""
        self.fit()
        if not self.finished:
            # The training wrote down its own config there, with the checkpoint that it was resumed from.
            config = self.claim_folder()
            tested = ["--model.init_from", str(self.folder / "model"), "--output", str(self.folder)]
            run(["test", "--config", config, *self.words, *self._place(), *tested])
            self.claim_folder()  # and so did the test
        self.tidy()

    def tidy(self) -> None:
        """Draw, and remove the checkpoints, which nobody needs any more; a kill may have come before that."""
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir() or not any(self.folder.glob("*.png")):
            draw_run(self.folder)
            shutil.rmtree(checkpoints, ignore_errors=True)

    def fit(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train, unless that was done."""
        config, model = self.claim_folder(), self.folder / "model"
        if not (model / "history.json").is_file():  # the last that is written
            last = self.folder / "checkpoints" / "last.ckpt"
            resume = ["--ckpt_path", str(last)] if last.is_file() else []
            run(["fit", "--config", config, *self.words, *self._place(), "--output", str(model), *resume], callbacks)

    def fit_words(self) -> list[str]:
        """Take the folder and return the command-line words that fit the run; see `claim_folder`."""
        return ["fit", "--config", self.claim_folder(), *self.words, *self._place()]

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the scores of all test images: from name to value, low, high, count and patients."""
        scores: dict[str, dict[str, Any]] = read_json(self.folder / "scores.json")["all"]
        return scores

    def _place(self) -> list[str]:
        return ["--trainer.logger", "false", "--trainer.default_root_dir", str(self.folder)]

    def claim_folder(self) -> str:
        """Take the folder for these settings and return the path of the config in it.

        Raises:
            ConfigError: If it holds a run with other settings.
        """
        claim(self.folder, self.config, self.words)
        return str(write_yaml(self.folder / "config.yaml", self.config))


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

    def check(self) -> None:
        """Build everything of every part and train nothing.

        Raises:
            CovidCXRError: If a setting is wrong.
        """
        for _, one in self.parts:
            if not one.finished:
                one.check()

    def go(self) -> None:
        """Fit and test every part that is not finished, and score all of them together."""
        for number, (part, one) in enumerate(self.parts, 1):
            if not one.finished:
                print_line(f"Part {number} of {len(self.parts)}: {part.name}")
            one.go()
        rows = pool_rows((part, read_rows(one.folder / "predictions.csv")) for part, one in self.parts)
        scores = score_sources(rows)
        write_scores(rows, scores, self.folder)
        draw_run(self.folder)
        print_scores(scores)

    def claim_folder(self) -> str:
        """Take the folder for these settings and parts, and return the path of the config in it.

        Raises:
            ConfigError: If it holds a run with other settings.
        """
        claim(self.folder, [self.config, [part.name for part, _ in self.parts]], self.words)
        return str(write_yaml(self.folder / "config.yaml", self.config))
