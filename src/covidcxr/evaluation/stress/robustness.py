"""Do answers hold when an image changes in ways that change nothing of the lungs?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.segmentation import dice_score, segmentation_metrics
from covidcxr.evaluation.metrics.weighted import weighted_auroc, weighted_mean
from covidcxr.evaluation.plots import COLORS, INK, as_picture, panels
from covidcxr.evaluation.predictions.sample import Asked, Images, ImageSample, as_pipeline
from covidcxr.evaluation.stress.perturbations import Perturbation, find_perturbations
from covidcxr.models import Classifier
from covidcxr.page import Block, Section, Table
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.types import SplitName
from covidcxr.utils.threads import tracked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Effect", "Robustness", "robustness", "compare_answers"]

Probabilities: TypeAlias = Float[np.ndarray, "images classes"]


Column = Float[np.ndarray, " images"]


_SEPARATOR = "\0"


_SHARES = ("accuracy", "macro_auroc", "changed", "unanswered")


def compare_answers(
    records: Sequence[Record],
    classifier: Classifier,
    clean: Sequence[Prediction],
    others: Mapping[str, Sequence[Prediction]],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Score answers by how they differ from the first ones, on the same resamples of patients.

    Args:
        records: The images.
        classifier: What was asked.
        clean: The first answers.
        others: Further answers to the same images, by name.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        `accuracy` and `macro_auroc` of the first answers, and by name the scores of `robustness.Effect`; those
        without an image are left out.
    """
    classes, exclusive = classifier.config.classes, classifier.config.mode != "multilabel"
    truth = np.array([_truth(record, classes) for record in records])
    first = _chances(clean, classes)
    chances = {name: _chances(found, classes) for name, found in others.items()}
    columns: dict[str, Column] = {}
    if exclusive:
        columns["accuracy"] = _right(_calls(first, classifier), truth, ~np.isnan(first[:, 0]))
    for name, values in chances.items():
        columns |= {f"{name}{_SEPARATOR}{key}": one for key, one in _changes(classifier, truth, first, values).items()}

    def table(weights: Float[np.ndarray, "resamples images"]) -> dict[str, np.ndarray]:
        rows = {name: weighted_mean(weights, values) for name, values in columns.items()}
        rows["macro_auroc"] = _macro_auroc(weights, truth, first)
        for name, values in chances.items():
            both = np.where(np.isnan(values[:, :1] + first[:, :1]), math.nan, 0.0)
            change = _macro_auroc(weights, truth, values + both) - _macro_auroc(weights, truth, first + both)
            rows[f"{name}{_SEPARATOR}macro_auroc_change"] = change
        return rows

    images = {name: ~np.isnan(values) for name, values in columns.items()}
    images["macro_auroc"] = _labelled(truth, first)
    for name, values in chances.items():
        images[f"{name}{_SEPARATOR}macro_auroc_change"] = _labelled(truth, values + first)
    groups = [record.patient for record in records]
    shares = [name for name in images if name.rpartition(_SEPARATOR)[2] in _SHARES]
    found = bootstrap_many(table, groups=groups, images=images, shares=shares, resamples=resamples, seed=seed)
    scores: dict[str, Any] = {name: {} for name in ("", *others)}
    for key, one in found.items():
        name, _, score = key.rpartition(_SEPARATOR)
        if one.count:
            scores[name][score] = one
    return scores.pop(""), scores


def _changes(
    classifier: Classifier, truth: Probabilities, first: Probabilities, values: Probabilities
) -> dict[str, Column]:
    """Return what differs on each image; NaN where it is not known."""
    asked = ~np.isnan(first[:, 0])
    both = asked & ~np.isnan(values[:, 0])
    was, now = _calls(first, classifier), _calls(values, classifier)
    found = {
        "changed": _where(both, (was != now).any(1)),
        "unanswered": _where(asked, ~both),
        "shift": _where(both, np.abs(np.nan_to_num(values - first)).max(1)),
    }
    if classifier.config.mode != "multilabel":
        found["accuracy_change"] = _right(now, truth, both) - _right(was, truth, both)
    return found


def _truth(record: Record, classes: Sequence[str]) -> list[float]:
    """Return for each class whether the image shows it; NaN = not known."""
    if record.findings:
        return [float(record.findings[name]) if name in record.findings else math.nan for name in classes]
    return [float(record.label == name) if record.label in classes else math.nan for name in classes]


def _chances(found: Sequence[Prediction], classes: Sequence[str]) -> Probabilities:
    return np.array([[one.probabilities.get(name, math.nan) for name in classes] for one in found])


def _calls(chances: Probabilities, classifier: Classifier) -> Bool[np.ndarray, "images classes"]:
    """Return which classes are called: the most probable one, or the findings from their thresholds up."""
    config = classifier.config
    if config.mode == "multilabel":
        return np.asarray(chances >= np.array([config.thresholds.get(name, 0.5) for name in config.classes]))
    return np.asarray(np.arange(chances.shape[1]) == np.nan_to_num(chances).argmax(1)[:, None])


def _right(calls: np.ndarray, truth: Probabilities, known: np.ndarray) -> Column:
    return _where(known & ~np.isnan(truth[:, 0]), (calls == (truth == 1)).all(1))


def _where(known: np.ndarray, values: np.ndarray) -> Column:
    return np.where(known, values.astype(float), math.nan)


def _labelled(truth: Probabilities, chances: Probabilities) -> Bool[np.ndarray, " images"]:
    return np.asarray(~np.isnan(truth + chances).all(1))


def _macro_auroc(weights: np.ndarray, truth: Probabilities, chances: Probabilities) -> Float[np.ndarray, " resamples"]:
    """Return the mean AUROC of the classes that there are images with and without."""
    areas = []
    for column, scores in zip(truth.T, chances.T, strict=True):
        known = ~np.isnan(column + scores)
        if 0 < column[known].sum() < known.sum():
            areas.append(weighted_auroc(weights, np.where(known, scores, math.nan), column == 1))
    return np.asarray(np.mean(areas, axis=0)) if areas else np.full(len(weights), math.nan)


@dataclass(frozen=True)
class Effect:
    """What one perturbation does to a model, each figure with its patient-clustered interval.

    Attributes:
        name: Of the kind of perturbation.
        strength: How much.
        scores: Of a classifier `changed` (share of the answers that are others: the most probable class, or of
            findings those that are called), `unanswered` (share of answered images that get no answer any more, since
            their lungs are not found), `shift` (mean absolute change of the probability that changes most), and of
            labelled images the paired differences `accuracy_change` and `macro_auroc_change`, perturbed minus clean. Of
            masks `dice_CLASS`, the overlap with the mask of the clean image, moved as the image was.
    """

    name: str
    strength: str
    scores: dict[str, Estimate]

    @property
    def title(self) -> str:
        """Name and strength."""
        return f"{self.name}, {self.strength}" if self.strength else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        scores = {name: one.to_dict() for name, one in self.scores.items()}
        return {"name": self.name, "strength": self.strength, "scores": scores}


@dataclass(frozen=True)
class Robustness:
    """What perturbations do to a model.

    Attributes:
        images: Number of images asked about.
        patients: Number of patients they come from.
        clean: `accuracy` and `macro_auroc` on the images as they are, where they have labels.
        effects: A perturbation each, in the order asked for.
        failed: From image id to why an image could not be read.
    """

    images: int
    patients: int
    clean: dict[str, Estimate]
    effects: tuple[Effect, ...]
    failed: dict[str, str] = field(default_factory=dict)

    def ranked(self, score: str = "changed") -> list[Effect]:
        """Return the effects of which a score is known, the largest first."""
        known = [one for one in self.effects if score in one.scores and not math.isnan(one.scores[score].value)]
        return sorted(known, key=lambda one: -one.scores[score].value)

    @property
    def summary(self) -> str:
        """What it comes to, in a sentence or two."""
        ranked = self.ranked()
        if not ranked:
            name = next((name for one in self.effects for name in one.scores if name.startswith("dice_")), "")
            if not self.ranked(name):
                return "Nothing was answered, so nothing can be compared."
            worst = self.ranked(name)[-1]
            return f"The masks are changed most by {worst.title}: Dice {worst.scores[name]} with those of the clean images."
        most = " and ".join(f"{one.title} ({_share(one.scores['changed'])})" for one in ranked[:2])
        words = f"Most answers are changed by {most}."
        letters = [one for one in ranked if one.name == "letter"]
        if letters and letters[0] not in ranked[:2]:
            words = (
                f"A letter in the corner changes up to {_share(letters[0].scores['changed'])} of the answers. {words}"
            )
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "summary": self.summary,
            "films": self.images,
            "patients": self.patients,
            "clean": {name: one.to_dict() for name, one in self.clean.items()},
            "effects": [one.to_dict() for one in self.effects],
            "failed": dict(self.failed),
        }

    def sections(self) -> list[Section]:
        """Return the part of a report."""
        lead = (
            f"{self.summary} Each of {self.images} images was changed in ways that leave the lungs as they are, and the "
            f"model was asked again. Nothing changes by chance: the same image gets the same answer."
        )
        dice = dict.fromkeys(name for one in self.effects for name in one.scores if name.startswith("dice_"))
        titles = {"changed": "answers that change", "macro_auroc_change": "macro AUROC, change"}
        titles |= {name: f"Dice of {name.removeprefix('dice_')}" for name in dice}
        shown = {name: title for name, title in titles.items() if self.ranked(name)}
        blocks: list[Block] = []
        if shown:
            alt = f"By perturbation: {', '.join(shown.values())}"
            caption = (
                f"{alt}; with 95 % intervals over patients. Answers and masks are compared with the clean image's."
            )
            blocks.append(as_picture(_plot(self.effects, shown), alt, caption))
        if top := self.ranked()[:5]:
            blocks.append(_table(top))
        return [Section("Robustness", lead, blocks)]


def robustness(
    model: Asked,
    data: Images,
    *,
    split: SplitName | None = "test",
    perturbations: Sequence[str | Perturbation] | None = None,
    max_images: int | None = None,
    batch_size: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Robustness:
    """Ask about images as they are and perturbed, and compare the answers image by image.

    A pipeline draws the lungs on the perturbed image itself, as it would in use.

    Args:
        model: A pipeline, a classifier of the full image, or a segmenter.
        data: A data module, or records or paths of images; labels are used where they are the model's classes.
        split: Of a data module: "train", "val" or "test"; None = all images.
        perturbations: Kinds of `PERTURBATIONS`, or one's own `Perturbation`; None = all.
        max_images: Most images, drawn from as many patients as possible; None = all.
        batch_size: Images a batch.
        resamples: How often to resample patients.
        seed: Of the draw, of what is random in perturbations, and of the intervals.
        progress: Show a progress bar on standard error.

    Returns:
        The effects; the same seed gives the same bits.

    Raises:
        ConfigError: If there are no images, none can be read, or a classifier of a region is given without its
            pipeline.
        UnknownNameError: If there is no such perturbation.
    """
    changes = find_perturbations(perturbations)
    sample = ImageSample(data, split=split, max_images=max_images, seed=seed)
    records: list[Record] = []
    clean: list[Prediction] = []
    changed: dict[str, list[Prediction]] = {one.title: [] for one in changes}
    overlaps: dict[str, list[dict[str, float]]] = {one.title: [] for one in changes}
    with as_pipeline(model) as pipeline:
        batches = sample.batches(batch_size)
        for batch in tracked(batches, -(-len(sample) // batch_size), "batches", progress):
            records += [record for record, _ in batch]
            before = _ask(pipeline, [image for _, image in batch])
            clean += map(_without_pixels, before)
            for change in changes:
                images = [change(image, image_id=record.image_id, seed=seed) for record, image in batch]
                found = _ask(pipeline, images)
                overlaps[change.title] += [_overlaps(*pair, change) for pair in zip(before, found, strict=True)]
                changed[change.title] += map(_without_pixels, found)
        classifier = pipeline.classifier
    if not records:
        raise ConfigError(f"None of {len(sample)} images can be read: {next(iter(sample.failed.values()))}")
    settings = {"resamples": resamples, "seed": seed}
    scores = {title: _score_masks(records, found, **settings) for title, found in overlaps.items()}
    first: dict[str, Estimate] = {}
    if classifier is not None:
        first, answered = compare_answers(records, classifier, clean, changed, **settings)
        scores = {title: answered[title] | found for title, found in scores.items()}
    effects = tuple(Effect(one.name, one.strength, scores[one.title]) for one in changes)
    return Robustness(len(records), len({record.patient for record in records}), first, effects, dict(sample.failed))


def _ask(pipeline: Pipeline, images: Sequence[Float[np.ndarray, "_ _"]]) -> list[Prediction]:
    found = list(pipeline.predict(images, batch_size=len(images)))
    return [one for one in found if isinstance(one, Prediction)]  # all: arrays can be read


def _without_pixels(one: Prediction) -> Prediction:
    """Keep the answer alone: masks and images of many perturbations would fill the memory."""
    return Prediction(one.image_id, one.label, one.probabilities, one.reasons, {}, one.image[:1, :1])


def _overlaps(clean: Prediction, found: Prediction, change: Perturbation) -> dict[str, float]:
    return {
        # A gate that refuses the changed image leaves it without masks: the change cost all of them.
        f"dice_{name}": dice_score(found.masks[name], change.move(mask)) if name in found.masks else 0.0
        for name, mask in clean.masks.items()
    }


def _score_masks(
    records: Sequence[Record], overlaps: Sequence[Mapping[str, float]], **settings: int
) -> dict[str, Estimate]:
    """Average what was measured on each image; one that a gate refused unchanged has no masks to compare."""
    known = [number for number, one in enumerate(overlaps) if one]
    columns = {name: np.array([overlaps[n][name] for n in known]) for name in overlaps[known[0]]} if known else {}
    groups = [records[number].patient for number in known]
    return segmentation_metrics(columns, groups, **settings) if columns else {}


def _share(one: Estimate) -> str:
    doubt = "" if math.isnan(one.low) else f" [{one.low:.0%}, {one.high:.0%}]"
    return f"{one.value:.0%}{doubt}"


def _plot(effects: Sequence[Effect], titles: Mapping[str, str]) -> Figure:
    """Draw a panel a score, a line a perturbation."""
    figure, axes = panels(len(titles), width=2.1, height=0.9 + 0.2 * len(effects))
    for number, (axis, (name, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        if name.endswith("_change"):
            axis.axvline(0, color=INK, linewidth=1, linestyle=":")
        for place, effect in enumerate(effects):
            one = effect.scores.get(name)
            if one is not None and not math.isnan(one.value):
                axis.plot([one.low, one.high], [place, place], color=COLORS[0], linewidth=2)
                axis.plot(one.value, place, "o", color=COLORS[0], markersize=4)
        axis.set(xlabel=title, ylim=(len(effects) - 0.4, -0.6), yticks=range(len(effects)))
        axis.set_yticklabels([effect.title for effect in effects] if number == 0 else [])
    return figure


def _table(effects: Sequence[Effect]) -> Table:
    heads = {
        "changed": "Answers changed",
        "unanswered": "No answer any more",
        "shift": "Probability moves by",
        "accuracy_change": "Accuracy",
        "macro_auroc_change": "Macro AUROC",
    }
    names = [name for name in heads if any(name in one.scores for one in effects)]
    rows = [(one.title, *(str(one.scores[name]) if name in one.scores else "" for name in names)) for one in effects]
    return Table(("Perturbation", *(heads[name] for name in names)), rows, "The five that change most answers")
