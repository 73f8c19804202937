"""Signs that a model has learnt nothing, or has collapsed: the one place that judges, for fit, test and evaluate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.evaluation.metrics.reliability import COLDEST, HOTTEST
from covidcxr.evaluation.predictions.predictions import PredictionTable, Rows

__all__ = ["find_warning_signs", "loss_signs", "temperature_signs", "threshold_signs"]

LEAST_IMAGES = 10
"""Fewer images are not compared with the shares of their classes, which are chance."""


def find_warning_signs(rows: Rows, *, temperature: float = 1.0) -> list[str]:
    """Look for what a model without any use does: one answer for all, or no more than the shares of the classes.

    Args:
        rows: A row an image, as `covidcxr test` writes them.
        temperature: By which the probabilities are still to be calibrated, above 0; see
            `covidcxr.evaluation.calibrate`.

    Returns:
        A sentence for each sign; none of them for a model that has learnt something.

    Raises:
        ConfigError: If there are no rows, or nothing in them can be scored.

    Example:
        ```python
        from covidcxr.evaluation.predictions.warning_signs import find_warning_signs

        row = {"probability_covid19": 0.4, "probability_normal": 0.6}
        rows = [{**row, "image_id": str(n), "label": ("covid19", "normal")[n % 2]} for n in range(12)]
        assert "the same answer, normal" in find_warning_signs(rows)[0]
        ```
    """
    table = PredictionTable.read(rows)
    scored = table.scored
    signs = [*_mask_signs(table)]
    if len(scored) and len(scored.classes) > 1:
        signs += _class_signs(scored, temperature) if scored.exclusive else _finding_signs(scored)
    return signs


def temperature_signs(temperature: float) -> list[str]:
    """Say whether a temperature lies at a bound of its search.

    Args:
        temperature: Of a calibrated classifier, above 0.

    Returns:
        A sentence, or nothing.
    """
    if temperature >= 0.99 * HOTTEST:
        reason = "the probabilities say next to nothing about the images that it was fitted on"
    elif temperature <= 1.01 * COLDEST:
        reason = "the images that it was fitted on are too few, or too easy, to tell how sure it may be"
    else:
        return []
    return [f"The temperature {temperature:.3f} is the bound of its search: {reason}. Do not trust the probabilities."]


def threshold_signs(config: ModelConfig | EnsembleConfig) -> list[str]:
    """Say for which classes a promised coverage could not be kept but by naming them always.

    Args:
        config: Of a calibrated classifier.

    Returns:
        A sentence, or nothing.
    """
    always = [name for name, threshold in config.thresholds.items() if threshold == 0]
    if config.coverage is None or not always:
        return []
    return [
        f"There are too few validation patients of {', '.join(always)} to promise a coverage of {config.coverage:g}: "
        f"{'this class is' if len(always) == 1 else 'these classes are'} plausible for every image."
    ]


def loss_signs(epochs: Sequence[Mapping[str, float]]) -> list[str]:
    """Say whether the loss of a training stopped being a number.

    Args:
        epochs: An entry for each epoch, as `history.json` holds them.

    Returns:
        A sentence, or nothing.
    """
    for entry in epochs:
        if not math.isfinite(entry.get("train/loss", 0.0)):
            return [
                f"The training loss of epoch {entry['epoch']:.0f} is not finite: no image was labelled, or the "
                f"training diverged (lower the learning rate, or clip gradients by gradient_clip_val)."
            ]
    return []


def _class_signs(table: PredictionTable, temperature: float) -> Iterator[str]:
    answers, labels = table.probabilities.argmax(1), table.labels
    present = np.bincount(labels, minlength=len(table.classes))
    if (present > 0).sum() < 2:
        return
    if (answers == answers[0]).all():
        constant = np.ptp(table.probabilities, axis=0).max() < 1e-6
        yield (
            f"All {len(table)} images get the same answer, {table.classes[answers[0]]},"
            f"{' with the same probabilities,' if constant else ''} though they are of {(present > 0).sum()} classes: "
            f"the model has collapsed."
        )
    if len(table) < LEAST_IMAGES:
        return
    shares = present / len(table)
    prior = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    chosen = _at_temperature(table.probabilities, temperature)[np.arange(len(table)), labels]
    loss = -float(np.log(chosen.clip(1e-12)).mean())
    if loss >= 0.99 * prior:
        yield (
            f"The probabilities say no more than the shares of the classes (log loss {loss:.3f}, of the shares "
            f"{prior:.3f}): nothing was learnt, or the probabilities are far too sure."
        )


def _at_temperature(
    probabilities: Float[np.ndarray, "images classes"], temperature: float
) -> Float[np.ndarray, "images classes"]:
    powers = probabilities.clip(1e-12) ** (1 / temperature)
    scaled: np.ndarray = powers / powers.sum(1, keepdims=True)
    return scaled


def _finding_signs(table: PredictionTable) -> Iterator[str]:
    for name, truths, values in zip(table.classes, table.truths.T, table.probabilities.T, strict=True):
        both = (truths == 1).any() and (truths == 0).any()
        if both and np.ptp(values) < 1e-6:
            yield f"All {len(table)} images get the same probability of {name}: the model has collapsed."


def _mask_signs(table: PredictionTable) -> Iterator[str]:
    for name, values in table.masks.items():
        known = values[~np.isnan(values)]
        if name.startswith("dice_") and len(known) and not known.any():
            yield f"No mask of {name.removeprefix('dice_')} meets the true one in any of {len(known)} images."
