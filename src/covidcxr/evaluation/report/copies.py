"""Images that training has seen, or a copy of them: how many were scored, and what a model scores without them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.scores import format_estimate, group_scores
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.page import Block, Section, Words, sections_of
from covidcxr.utils.plain import count_of, plain_result

if TYPE_CHECKING:
    from covidcxr.data.curation.duplicates import DuplicateGroup
    from covidcxr.data.records import Record

__all__ = ["CopyScores", "find_copied", "score_copies"]


@dataclass(frozen=True)
class CopyScores:
    """A model's AUROC with and without the images that training has seen, or a copy of them.

    Attributes:
        images: Images with a label and a prediction.
        copied: Those of them with a copy in training, training images aside.
        scores: AUROC of "all" images, of the "new" ones that neither are training images nor have a copy there, of
            those that are "copied", and of the training images, "trained".
        loss: AUROC of all images less that of the new ones, on the same resamples; None = all images are new.
        trained: How many of the images are training images themselves.
        searched: Whether copies were searched for; else `copied` is 0 because nobody knows.
        noun: What the images are: "test image", "image" (of several splits, or not stated), ...
        place: Where their copies are: "in training", or of a cross-validation "in another fold".

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(40)]
        result = evaluate_rows(rows, copied=["0", "1"], resamples=20).parts["copies"]
        assert result.copied == 2 and result.scores["new"].count == 38
        ```
    """

    images: int
    copied: int
    scores: Mapping[str, Estimate]
    loss: Estimate | None
    trained: int = 0
    searched: bool = True
    noun: str = "image"
    place: str = "in training"

    @property
    def new(self) -> int:
        """Number of images that neither are training images nor have a copy there."""
        return self.images - self.copied - self.trained

    @property
    def trained_in_words(self) -> str:
        """How many of the images are training images: "180 of them training images"; "" = none."""
        if not self.trained:
            return ""
        return f"{'all' if self.trained == self.images else f'{self.trained:,}'} of them training images"

    @property
    def copied_in_words(self) -> str:
        """How many of the images have a copy: "94 of 1,100 test images have a copy in training"."""
        others = self.images - self.trained
        noun = f"{'other ' if self.trained else ''}{self.noun}"
        have = "has" if self.copied < 2 else "have"
        return f"{f'{self.copied:,}' if self.copied else 'none'} of {count_of(others, noun)} {have} a copy {self.place}"

    @property
    def summary(self) -> str:
        """How many images training has seen, in a sentence or two."""
        parts = [f"{count_of(self.images, 'image')} were scored, {self.trained_in_words}."] if self.trained else []
        if self.searched:
            parts.append(f"{self.copied_in_words.capitalize()}.")
        elif self.new:
            parts.append(f"Nobody searched for copies of the training images among the other {self.new:,}.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        result: dict[str, Any] = plain_result(asdict(self) | {"scores": self.scores, "loss": self.loss})
        return result | {"summary": self.summary}


@sections_of.register
def _(result: CopyScores) -> list[Section]:
    title = "Training images" if result.trained else f"Copies {result.place}"
    if result.loss is None:
        return [Section(title, result.summary)]
    change = f"AUROC of all images less that of the others: {format_estimate(result.loss, signed=True)}."
    blocks: list[Block] = [Words(f"A model that remembers an image is right on it and on its copy. {change}", True)]
    new = ["training images"] * bool(result.trained) + [f"images that have a copy {result.place}"] * result.searched
    titles = {
        "all": "all images",
        "new": f"without {' and '.join(new)}",
        "copied": f"images with a copy {result.place}, alone",
        "trained": "training images alone",
    }
    shown = {titles[name]: estimate for name, estimate in result.scores.items()}
    figure = plot_estimates(shown, title="AUROC (0.5 = chance)", chance=0.5)
    blocks.append(as_picture(figure, "AUROC with and without the images that training has seen, or a copy of them"))
    return [Section(title, result.summary, blocks)]


def find_copied(
    rows: Sequence[Mapping[str, Any]],
    records: Iterable[Record],
    search: Callable[[list[Record]], Iterable[DuplicateGroup]],
) -> list[str] | None:
    """Find the scored images that have a copy among those that their model trained on.

    Of a cross-validation (rows with a `fold`) these are copies in another fold, which trains or validates; else copies
    among the training images of the data set.

    Args:
        rows: A row an image.
        records: All images of the data set.
        search: Finds the copies among the records that it is given.

    Returns:
        Ids of the images; None where there is no training image, or none besides them was scored.
    """
    from covidcxr.evaluation.shortcuts.leakage import copies_across_parts  # brings Lightning, scores do without

    records = list(records)
    folds = {str(row["image_id"]): str(row["fold"]) for row in rows if row.get("fold")}
    if folds:
        groups = search([record for record in records if record.image_id in folds])
        own = [[name for name in group.image_ids if name in folds] for group in groups]
        return [name for names in own if len({folds[name] for name in names}) > 1 for name in names]
    parts: dict[str, str | None] = {record.image_id: "train" for record in records if record.split == "train"}
    tested = {str(row["image_id"]): "test" for row in rows if str(row["image_id"]) not in parts}
    if not parts or not tested:
        return None
    groups = search([record for record in records if record.image_id in parts or record.image_id in tested])
    return list(copies_across_parts(groups, parts | tested).get("test", ()))


def score_copies(
    predictions: PredictionTable,
    copied: Collection[str] | None,
    *,
    positive: int | None,
    resamples: int = 1000,
    seed: int = 0,
) -> CopyScores | None:
    """Score a classifier with and without the images that training has seen, or a copy of them.

    Args:
        predictions: The images.
        copied: Ids of images with a copy among the training images; None = nobody searched for them.
        positive: Number of the positive class; None = there is none.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, no image has both a label and a prediction, or nothing is known: the rows
        call no image a training image, and nobody searched for copies.
    """
    predictions = predictions.scored
    trained = predictions.trained
    if not len(predictions) or not predictions.classes or (copied is None and not trained.any()):
        return None
    ids = set(copied or ())
    known = np.array([row["image_id"] in ids for row in predictions.rows]) & ~trained
    parts = {"all": np.ones(len(predictions), bool)}
    if known.any() or trained.any():
        parts |= {"new": ~known & ~trained}
        parts |= {name: images for name, images in (("copied", known), ("trained", trained)) if images.any()}
    auroc = group_scores(predictions, positive)["auroc"]

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: auroc.statistic(weights, images) for name, images in parts.items()}

    estimates = bootstrap_many(
        table,
        groups=predictions.patients,
        images=parts | {"loss": parts.get("new", parts["all"])},
        shares=tuple(parts),
        differences={"loss": ("all", "new")} if "new" in parts else {},
        resamples=resamples,
        seed=seed,
    )
    return CopyScores(
        len(predictions),
        int(known.sum()),
        {name: estimates[name] for name in parts},
        estimates.get("loss"),
        int(trained.sum()),
        copied is not None,
        predictions.noun,
        "in another fold" if any(row.get("fold") for row in predictions.rows) else "in training",
    )
