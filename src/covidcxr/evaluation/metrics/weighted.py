"""Statistics for `bootstrap`: each takes weights [resamples, images] first and returns one number a resample.

Unknown values (NaN) are left out, and what is not defined in a resample (the AUROC of one kind of image) is NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer

__all__ = [
    "Ranking",
    "bin_of",
    "calibration_gaps",
    "ratio",
    "stratified_auroc",
    "two_columns",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_calibration_error",
    "weighted_confusion",
    "weighted_mean",
    "weighted_quantile",
]


def weighted_mean(
    weights: Float[np.ndarray, "resamples images"], values: np.ndarray
) -> Float[np.ndarray, " resamples"]:
    """Return the mean of values in each resample.

    Args:
        weights: Weight of each image in each resample, [resamples, images].
        values: One number or bool an image, [images]; NaN = unknown, left out.

    Returns:
        Means, [resamples]; NaN where no value is known.
    """
    known = ~np.isnan(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(float))


def weighted_quantile(
    weights: Float[np.ndarray, "resamples images"], values: Float[np.ndarray, " images"], level: float
) -> Float[np.ndarray, " resamples"]:
    """Return a quantile of values in each resample: the smallest value that so large a share does not exceed.

    Args:
        weights: Weight of each image in each resample, [resamples, images].
        values: One number an image; NaN = unknown, left out.
        level: The share, in (0, 1); 0.5 = the median, without a mean of the two in the middle.

    Returns:
        Quantiles, [resamples]; NaN where no value is known.
    """
    images = np.flatnonzero(~np.isnan(values))
    if not len(images):
        return np.full(len(weights), np.nan)
    images = images[np.argsort(values[images], kind="stable")]
    below = np.cumsum(np.take(weights, images, axis=1), axis=1)
    total = below[:, -1]
    place = (below < (level * total)[:, None]).sum(1).clip(max=len(images) - 1)
    return np.where(total > 0, values[images][place], np.nan)


class Ranking:
    """Images in the order of their scores, sorted once for all resamples.

    Args:
        scores: Higher = more likely positive; NaN = unknown, left out.
        positive: Which images are positive.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.metrics.weighted import Ranking

        ranking = Ranking(np.array([0.9, 0.8, 0.3]), np.array([True, False, True]))
        auroc, average_precision = ranking.areas(np.ones((1, 3)))
        assert auroc[0] == 0.5
        ```
    """

    def __init__(self, scores: Float[np.ndarray, " images"], positive: Bool[np.ndarray, " images"]) -> None:
        images = np.flatnonzero(~np.isnan(scores))
        self._images = images[np.argsort(-scores[images], kind="stable")]
        falling, positives = -scores[self._images], np.flatnonzero(positive[self._images])
        self._positives = positives
        # How many images score as high as each positive one, or higher; and how many of them are positive
        self._at_least = np.searchsorted(falling, falling[positives], side="right")
        self._higher = np.searchsorted(falling, falling[positives], side="left")
        self._true_positives = np.searchsorted(positives, self._at_least)

    def areas(
        self, weights: Float[np.ndarray, "resamples images"]
    ) -> tuple[Float[np.ndarray, " resamples"], Float[np.ndarray, " resamples"]]:
        """Compute the area under the ROC curve and the average precision in each resample.

        Args:
            weights: Weight of each image in each resample, [resamples, images].

        Returns:
            The two, [resamples] in [0, 1]; NaN where a resample holds only one kind, or no positive image.
        """
        weights = np.take(weights, self._images, axis=1)
        highest = np.zeros((len(weights), len(self._images) + 1))  # [:, k] = weight of the k images that score highest
        np.cumsum(weights, axis=1, out=highest[:, 1:])
        positives = np.take(weights, self._positives, axis=1)
        at_least, higher = np.take(highest, self._at_least, axis=1), np.take(highest, self._higher, axis=1)
        true_positives = np.take(np.cumsum(positives, axis=1), self._true_positives - 1, axis=1)
        total = positives.sum(1)
        negatives = highest[:, -1] - total
        # Of all images that score higher (ties half), positive ones make half of all pairs of positive images.
        losses = (np.einsum("rf,rf->r", positives, at_least + higher) - total**2) / 2
        precision = np.divide(
            true_positives, at_least, out=true_positives, where=at_least > 0
        )  # else the image has no weight
        return (1 - ratio(losses, total * negatives), ratio(np.einsum("rf,rf->r", positives, precision), total))


def weighted_auroc(
    weights: Float[np.ndarray, "resamples images"],
    scores: Float[np.ndarray, " images"],
    positive: Bool[np.ndarray, " images"],
) -> Float[np.ndarray, " resamples"]:
    """Return the area under the ROC curve in each resample: P(a positive image scores above a negative one), ties half.

    Args:
        weights: Weight of each image.
        scores: Higher = more likely positive; NaN = unknown, left out.
        positive: Which images are positive.

    Returns:
        In [0, 1]; NaN where a resample holds only one kind.
    """
    return Ranking(scores, positive).areas(weights)[0]


def stratified_auroc(
    weights: Float[np.ndarray, "resamples images"],
    score: Float[np.ndarray, " images"],
    truth: Float[np.ndarray, " images"],
    strata: np.ndarray,
) -> Float[np.ndarray, " resamples"]:
    """Return the AUROC of a class against the rest, comparing only images of the same stratum.

    It is the share of pairs (one image with the class, one without, both of one source, say) that are ranked right.

    Args:
        weights: [resamples, images].
        score: Probability of the class; NaN = not known.
        truth: 1, 0 or NaN = not labelled.
        strata: Stratum of each image.

    Returns:
        AUROC in [0, 1]; NaN where no stratum holds both.
    """
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    known = ~np.isnan(truth) & ~np.isnan(score)
    for stratum in np.unique(strata):
        images = (strata == stratum) & known
        positives = truth[images] == 1
        if positives.any() and not positives.all():
            drawn = weights[:, images]
            count = drawn[:, positives].sum(1) * drawn[:, ~positives].sum(1)
            right += np.nan_to_num(weighted_auroc(drawn, score[images], positives)) * count
            pairs += count
    return ratio(right, pairs)


def weighted_average_precision(
    weights: Float[np.ndarray, "resamples images"],
    scores: Float[np.ndarray, " images"],
    positive: Bool[np.ndarray, " images"],
) -> Float[np.ndarray, " resamples"]:
    """Return the average precision in each resample: the mean, over positive images, of the precision at their score.

    Images of one score are counted together, and nothing is interpolated (Davis and Goadrich 2006).

    Args:
        weights: Weight of each image.
        scores: Higher = more likely positive; NaN = unknown, left out.
        positive: Which images are positive.

    Returns:
        In [0, 1]; NaN where a resample holds no positive image. Guessing gives the share of positive images.
    """
    return Ranking(scores, positive).areas(weights)[1]


def weighted_confusion(
    weights: Float[np.ndarray, "resamples images"],
    labels: Integer[np.ndarray, " images"],
    predicted: Integer[np.ndarray, " images"],
    classes: int,
) -> Float[np.ndarray, "resamples classes classes"]:
    """Compute the confusion matrix of each resample.

    Args:
        weights: Weight of each image in each resample, [resamples, images].
        labels: Index of the true class of each image.
        predicted: Index of the predicted class of each image.
        classes: Number of classes.

    Returns:
        Weights of images, [resamples, classes, classes]: rows = true class, columns = predicted class.
    """
    cells = np.eye(classes * classes)[labels * classes + predicted]
    counts: np.ndarray = weights @ cells
    return counts.reshape(len(weights), classes, classes)


def weighted_calibration_error(
    weights: Float[np.ndarray, "resamples images"],
    probabilities: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " images"],
    bins: int = 15,
) -> Float[np.ndarray, " resamples"]:
    """Compute the expected calibration error in each resample; see `expected_calibration_error`.

    Args:
        weights: Weight of each image in each resample, [resamples, images].
        probabilities: A row an image; one column = probability of the second class.
        labels: Index of the true class of each image.
        bins: Number of bins of equal width.

    Returns:
        Errors in [0, 1], [resamples].
    """
    return ratio(np.abs(weights @ calibration_gaps(probabilities, labels, bins)).sum(1), weights.sum(1))


def calibration_gaps(
    probabilities: Float[np.ndarray, "images classes"], labels: Integer[np.ndarray, " images"], bins: int
) -> Float[np.ndarray, "images bins"]:
    """Compute what each image adds to the gap between accuracy and confidence of its bin.

    Args:
        probabilities: A row an image; one column = probability of the second class.
        labels: Index of the true class of each image.
        bins: Number of bins of equal width.

    Returns:
        Whether the most probable class is the true one (0 or 1) less its probability, in the column of the bin; else 0.
    """
    probabilities = two_columns(probabilities, 1.0)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = np.zeros((len(labels), bins))
    gaps[np.arange(len(labels)), bin_of(confidence, bins)] = correct - confidence
    return gaps


def bin_of(confidence: Float[np.ndarray, " images"], bins: int) -> Integer[np.ndarray, " images"]:
    """Find the bin of each number; bins have equal width in [0, 1], are open below and closed above.

    Args:
        confidence: Numbers in [0, 1].
        bins: Number of bins.

    Returns:
        Numbers of the bins, from 0.
    """
    numbers: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return numbers


def two_columns(values: np.ndarray, whole: float) -> np.ndarray:
    """Write one column of outputs as two, for the first and the second class.

    Args:
        values: Logits or probabilities, [images, outputs]; several columns are returned as they are.
        whole: What the two columns sum to: 1 for probabilities; 0 for logits, where the first column is 0.

    Returns:
        [images, 2] or more columns.
    """
    return np.concatenate([whole - whole * values, values], axis=1) if values.shape[1] == 1 else values


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide two arrays.

    Args:
        part: The dividend.
        whole: The divisor, of the same shape.

    Returns:
        The quotient; NaN where `whole` is not above 0.
    """
    quotient: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return quotient
