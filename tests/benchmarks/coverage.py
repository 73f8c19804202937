"""How often the intervals of covidcxr hold the truth, by simulation: the table of the guide "Intervals".

    python tests/benchmarks/coverage.py --write docs/guide/intervals.md
    python tests/benchmarks/coverage.py --only share,dice --patients 10 --simulations 200

Every number is scored by the library's own functions on drawn images: of 10, 30 and 100 patients, each with 3 images,
with 1 to 9, or with a Pareto number from 1 to 60 (a few patients hold most images). Half of what tells images apart is
their patient's. A cell says how often nominal 95 % intervals held the truth, of those that were given.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy.special import expit, ndtr, softmax

from covidcxr.evaluation import (
    Estimate,
    bootstrap_many,
    classification_metrics,
    decision_curve,
    measure_reliability,
    predictive_values,
    score_at,
    segmentation_metrics,
    unpaired_difference,
    weighted_auroc,
    weighted_mean,
)
from covidcxr.evaluation.metrics.agreement import limits_of_agreement
from covidcxr.evaluation.metrics.comparison import subtract
from covidcxr.evaluation.metrics.intervals import Interval
from covidcxr.evaluation.metrics.scores import title
from covidcxr.evaluation.metrics.segmentation import count_failures, mask_statistics
from covidcxr.evaluation.predictions import PredictionTable

PATIENTS = (10, 30, 100)
SIZES = ("equal", "unequal", "pareto")
RESAMPLES = 300
BATCH = 10
"""Simulations with the same patients: they share their resamples."""

START, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"

Result = tuple[str, "Interval | Estimate", float]
"""Which number, its interval, and the truth."""


@dataclass(frozen=True)
class Study:
    """Images of some patients, which a score is simulated on.

    Attributes:
        patient: Patient of each image.
        rng: Draws.
        simulations: How often.
        seed: Of the resamples.
    """

    patient: np.ndarray
    rng: np.random.Generator
    simulations: int
    seed: int

    def latent(self, alike: float = 0.5) -> np.ndarray:
        """Draw normal numbers [simulations, images], correlated within a patient."""
        own = self.rng.normal(size=(self.simulations, self.patient.max() + 1))[:, self.patient]
        return math.sqrt(alike) * own + math.sqrt(1 - alike) * self.rng.normal(
            size=(self.simulations, len(self.patient))
        )

    def labels(self) -> np.ndarray:
        """Draw the label of each patient, 0 or 1 alike often; return those of the images."""
        return (self.rng.random(self.patient.max() + 1) < 0.5)[self.patient].astype(int)

    def means(self, values: np.ndarray, share: bool) -> list[Estimate]:
        """Estimate the mean of each simulation, all on the same resamples."""
        columns = values.T.astype(float)
        names = [str(number) for number in range(self.simulations)]

        def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
            rows = (weights @ columns / weights.sum(1, keepdims=True)).T
            return dict(zip(names, rows, strict=True))

        shares = names if share else ()
        found = bootstrap_many(compute, groups=self.patient, shares=shares, resamples=RESAMPLES, seed=self.seed)
        return list(found.values())


def draw_patients(sizes: str, patients: int, rng: np.random.Generator) -> np.ndarray:
    """Return the patient of each image."""
    if sizes == "equal":
        counts = np.full(patients, 3)
    elif sizes == "unequal":
        counts = rng.integers(1, 10, patients)
    else:
        counts = np.minimum((1 - rng.random(patients)) ** (-1 / 1.5), 60).astype(int)
    return np.repeat(np.arange(patients), counts)


def shares(study: Study) -> Iterator[Result]:
    """Yield shares, such as a sensitivity, and differences of two paired ones."""
    for level in (0.03, 0.5, 0.9, 0.97):
        for found in study.means(ndtr(study.latent()) < level, share=True):
            yield f"share of {level:g}", found, level
    for levels in ((0.8, 0.7), (0.97, 0.95), (0.99, 0.99)):
        common, own = study.latent(), study.latent()
        right = [ndtr(common) < levels[0], ndtr(0.9 * common + math.sqrt(1 - 0.81) * own) < levels[1]]
        columns = [values.T.astype(float) for values in right]

        def compute(weights: np.ndarray, columns: list[np.ndarray] = columns) -> dict[str, np.ndarray]:
            both = [(weights @ column / weights.sum(1, keepdims=True)).T for column in columns]
            return {f"{model} {number}": row for model, rows in enumerate(both) for number, row in enumerate(rows)}

        names = [f"{model} {number}" for model in (0, 1) for number in range(study.simulations)]
        pairs = {str(number): (f"0 {number}", f"1 {number}") for number in range(study.simulations)}
        settings = {"shares": names, "differences": pairs, "resamples": RESAMPLES, "seed": study.seed}
        found = bootstrap_many(compute, groups=study.patient, **settings)
        for number in pairs:
            yield (
                f"paired difference of shares of {levels[0]:g} and {levels[1]:g}",
                found[number],
                levels[0] - levels[1],
            )


def means(study: Study) -> Iterator[Result]:
    """Yield means of numbers that are spread normally, and of skewed ones."""
    latent = study.latent()
    for found in study.means(latent, share=False):
        yield "mean, normal", found, 0.0
    for found in study.means(-np.log(ndtr(-latent)), share=False):
        yield "mean, exponential", found, 1.0


def aurocs(study: Study) -> Iterator[Result]:
    """Yield AUROCs of half positive and of one fifth positive patients, and paired differences."""
    for level, rarer in ((0.8, 2), (0.95, 2), (0.99, 2), (0.9, 5)):
        positive = study.patient % rarer == 1
        gap = math.sqrt(2) * NormalDist().inv_cdf(level)
        for values in study.latent()[::2]:
            found = auroc(values + gap * positive, positive, study)
            yield f"AUROC of {level:g}, 1 of {rarer} patients positive", found, level
    positive = study.patient % 2 == 1
    gap = math.sqrt(2) * NormalDist().inv_cdf(0.95)
    for common, own in zip(study.latent()[::2], study.latent()[::2], strict=True):
        scores = [common + gap * positive, 0.8 * common + 0.6 * own + gap * positive]
        yield "paired difference of AUROCs of 0.95", auroc_difference(scores, positive, study), 0.0


def auroc(scores: np.ndarray, positive: np.ndarray, study: Study) -> Estimate:
    """Estimate one AUROC."""

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"auroc": weighted_auroc(weights, scores, positive)}

    settings = {"shares": ("auroc",), "kinds": {"auroc": [positive, ~positive]}, "seed": study.seed}
    return bootstrap_many(compute, groups=study.patient, resamples=RESAMPLES, **settings)["auroc"]


def auroc_difference(scores: list[np.ndarray], positive: np.ndarray, study: Study) -> Estimate:
    """Estimate the difference of two AUROCs of the same images."""

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {str(model): weighted_auroc(weights, values, positive) for model, values in enumerate(scores)}

    settings = {
        "shares": ("0", "1"),
        "kinds": {model: [positive, ~positive] for model in ("0", "1")},
        "seed": study.seed,
    }
    differences = {"difference": ("0", "1")}
    return bootstrap_many(compute, groups=study.patient, differences=differences, resamples=RESAMPLES, **settings)[
        "difference"
    ]


def masks(study: Study) -> Iterator[Result]:
    """Yield scores of masks of which none, 3 % or 10 % fail, and the difference of two models."""
    for rate in (0.0, 0.03, 0.1):
        fails, place = (
            [ndtr(study.latent()) < rate for _ in range(2)],
            NormalDist().inv_cdf(1 - (0.5 - rate) / (1 - rate)),
        )
        rest = 1 - 0.05 * np.exp(0.5 * study.latent())
        second = 1 - 0.05 * np.exp(0.5 * study.latent())
        truths = {"rest": 1 - 0.05 * math.exp(0.125), "failed": rate, "median": 1 - 0.05 * math.exp(0.5 * place)}
        truths["dice"] = rate * 0.15 + (1 - rate) * truths["rest"]
        for number in range(study.simulations):
            dice, other = (
                np.where(fail[number], study.rng.uniform(0, 0.3, fail.shape[1]), values[number])
                for fail, values in zip(fails, (rest, second), strict=True)
            )
            scores = {"dice_lung": dice}
            found = segmentation_metrics(scores, study.patient, failures=True, resamples=RESAMPLES, seed=study.seed)
            for name, words in MASK_NUMBERS.items():
                yield f"{words}, {rate:.0%} of images fail", found[f"{name}_lung"], truths[name]
            if number % 2 == 0:
                pair = [mask_statistics(table | count_failures(table)) for table in (scores, {"dice_lung": other})]
                gaps = subtract(*pair, study.patient, RESAMPLES, study.seed)
                for name in ("dice", "rest"):
                    yield f"difference in {MASK_NUMBERS[name]}, {rate:.0%} of images fail", gaps[f"{name}_lung"], 0.0
    for number, values in enumerate(study.rng.poisson(0.3 * np.exp(study.latent() - 0.5))):
        del number
        scores = {"false_lesions_infection": values.astype(float)}
        found = segmentation_metrics(scores, study.patient, resamples=10, seed=study.seed)
        yield "false lesions an image (0.3)", found["false_lesions_infection"], 0.3


MASK_NUMBERS = {
    "dice": "mean Dice",
    "failed": "share of failed images",
    "rest": "mean Dice of the rest",
    "median": "median Dice",
}


def draw_classes(latent: np.ndarray, labels: np.ndarray, sharper: float) -> np.ndarray:
    """Return the probability of the second class, calibrated if `sharper` is 1; the AUROC is 0.92."""
    return expit(sharper * (2 * (latent + 2 * labels) - 2))


def draw_three(noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return probabilities of three classes."""
    return np.asarray(softmax(noise + 1.5 * np.eye(3)[labels], axis=-1))


@cache
def truths_of(kind: str) -> dict[str, float]:
    """Return the scores of very many images."""
    rng, count = np.random.default_rng(1), 200_000
    if kind == "three":
        labels = np.arange(count) % 3
        table = classification_metrics(
            draw_three(rng.normal(size=(count, 3)), labels), labels, range(count), "abc", resamples=1
        )
    else:
        labels = np.arange(count) % 2
        second = draw_classes(rng.normal(size=count), labels, 2.0 if kind == "overconfident" else 1.0)
        table = classification_metrics(np.stack([1 - second, second], 1), labels, range(count), "ab", resamples=1)
    return {name: estimate.value for name, estimate in table.items()}


def classifiers(study: Study) -> Iterator[Result]:
    """Yield the scores of a classifier of two classes, calibrated and overconfident, and of three classes."""
    labels = study.patient % 2
    for kind, sharper in (("calibrated", 1.0), ("overconfident", 2.0)):
        truths = truths_of(kind) | ({"ece": 0.0} if kind == "calibrated" else {})
        names = ("accuracy", "balanced_accuracy", "macro_f1", "precision_b", "average_precision_b", "brier", "ece")
        for latent in study.latent():
            second = draw_classes(latent, labels, sharper)
            settings = {"resamples": RESAMPLES, "seed": study.seed}
            found = classification_metrics(np.stack([1 - second, second], 1), labels, study.patient, "ab", **settings)
            for name in names if kind == "calibrated" else ("brier", "ece"):
                yield f"{title(name)}, {kind} model", found[name], truths[name]
    labels = study.patient % 3
    noise = np.stack([study.latent() for _ in range(3)], axis=-1)
    for number in range(0, study.simulations, 2):
        probabilities = draw_three(noise[number], labels)
        found = classification_metrics(
            probabilities, labels, study.patient, "abc", resamples=RESAMPLES, seed=study.seed
        )
        for name in ("balanced_accuracy", "macro_f1", "macro_auroc"):
            yield f"{title(name)}, three classes", found[name], truths_of("three")[name]


def calibration(study: Study) -> Iterator[Result]:
    """Yield what stands beside the calibration error, and predictive values at a prevalence of 5 %."""
    for sharper, intercept in ((1.0, 0.0), (2.0, 0.0)):
        kind = "calibrated" if sharper == 1 else "overconfident"
        for latent in study.latent()[::2]:
            labels = study.labels()
            second = draw_classes(latent, labels, sharper)
            rows = [
                {"image_id": f"{n:05d}", "patient_id": f"{p:05d}", "label": "ab"[label], "probability_b": q}
                for n, (p, label, q) in enumerate(zip(study.patient, labels, second, strict=True))
            ]
            found = measure_reliability(rows, "b", resamples=100, seed=study.seed)
            assert found.slope is not None
            assert found.intercept is not None
            assert found.skill is not None
            yield f"calibration slope, {kind} model", found.slope, 1 / sharper
            yield f"calibration intercept, {kind} model", found.intercept, intercept
            share = labels.mean()  # which the skill takes as given
            if 0 < share < 1:
                yield f"Brier skill, {kind} model", found.skill, 1 - truths_of(kind)["brier"] / (share * (1 - share))
            if kind == "calibrated":
                hit = 1 - NormalDist().cdf(-1)
                values = score_at(rows, "b", 0.5, 0.05, resamples=RESAMPLES, seed=study.seed)
                for name, truth in zip(("ppv", "npv"), predictive_values(hit, hit, 0.05), strict=True):
                    yield f"{name.upper()} at a prevalence of 5 %", values[name], truth


def decisions(study: Study) -> Iterator[Result]:
    """Yield net benefits, at the prevalence of the images and at one of 10 %, and what they are above treating all."""
    for latent in study.latent()[::2]:
        labels = study.labels()
        rows = PredictionTable.read(
            [
                {"patient_id": p, "label": "ab"[label], "probability_b": q}
                for p, label, q in zip(study.patient, labels, draw_classes(latent, labels, 1.0), strict=True)
            ]
        )
        for stated, share, at in ((None, 0.5, 0.5), (0.1, 0.1, 0.1), (0.1, 0.1, 0.5)):
            curve = decision_curve(rows, "b", thresholds=[at], prevalence=stated)
            cut, harm = math.log(at / (1 - at)) / 2, at / (1 - at) * (1 - share)
            treated, in_vain = (1 - NormalDist().cdf(cut - side) for side in (1, -1))
            where = f"from {at:g} up, prevalence {'of the images' if stated is None else 'of 10 %'}"
            truth = treated * share - in_vain * harm
            yield f"net benefit {where}", curve.net_benefit[0], truth
            if stated is None:  # else the two differ by what is known exactly
                yield f"the same above treating everyone, {where}", curve.gain[0], truth - share + harm


def agreement(study: Study) -> Iterator[Result]:
    """Yield bias and limits of agreement, of normal and of skewed differences."""
    for kind, values, middle in (("normal", study.latent(), 0.0), ("skewed", -np.log(ndtr(-study.latent())), 1.0)):
        for differences in values:
            found = limits_of_agreement(differences, np.zeros_like(differences), study.patient)
            yield f"bias, {kind} differences", found.bias, middle
            yield f"upper limit of agreement, {kind} differences", found.upper, middle + 1.96
            quantile = NormalDist().inv_cdf(0.975) if kind == "normal" else -math.log(0.025)
            yield f"97.5 % quantile, {kind} differences", found.upper_quantile, quantile


def groups(study: Study) -> Iterator[Result]:
    """Yield the difference of a share between two hospitals."""
    first = study.patient % 2 == 0
    for values in ndtr(study.latent())[::2]:
        right = np.where(first, values < 0.9, values < 0.8)
        parts, ids = ([right[first]], [right[~first]]), (study.patient[first], study.patient[~first])
        settings = {"share": True, "resamples": RESAMPLES, "seed": study.seed}
        yield (
            "difference of a share of two hospitals",
            unpaired_difference(weighted_mean, *parts, groups=ids, **settings),
            0.1,
        )


STUDIES: dict[str, tuple[Callable[[Study], Iterator[Result]], int]] = {
    "share": (shares, 1000),
    "groups": (groups, 400),
    "auroc": (aurocs, 300),
    "classifiers": (classifiers, 300),
    "calibration": (calibration, 200),
    "decisions": (decisions, 200),
    "mean": (means, 1000),
    "masks": (masks, 300),
    "agreement": (agreement, 500),
}
"""By name: what it yields, and how often it is simulated."""


def run(name: str, sizes: str, patients: int, simulations: int, seed: int = 0) -> dict[str, tuple[int, int, int]]:
    """Simulate one cell of each number of a study.

    Args:
        name: Of `STUDIES`.
        sizes: Of `SIZES`.
        patients: Number of patients.
        simulations: How often.
        seed: Same seed, same result.

    Returns:
        By number: how many intervals held the truth, how many were given, how often it was simulated.
    """
    counts: dict[str, list[int]] = {}
    for batch in range(0, simulations, BATCH):
        rng = np.random.default_rng([seed, batch, patients, SIZES.index(sizes)])
        study = Study(draw_patients(sizes, patients, rng), rng, min(BATCH, simulations - batch), batch)
        for number, found, truth in STUDIES[name][0](study):
            count = counts.setdefault(number, [0, 0, 0])
            count[0] += bool(found.low - 1e-9 <= truth <= found.high + 1e-9)
            count[1] += not math.isnan(found.low)
            count[2] += 1
    return {number: (held, given, drawn) for number, (held, given, drawn) in counts.items()}


def cell(held: int, given: int, drawn: int) -> str:
    """Return one cell of the table."""
    if given < 0.05 * drawn:  # too few to say how often they hold
        return "none"
    share = f"{held / given:.2f}"
    share = f"**{share}**" if round(held / given, 2) < 0.92 else share
    return share if given == drawn else f"{share} ({given / drawn:.0%})"


def table(names: list[str], simulations: int | None, patients: list[int], sizes: list[str]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    heads = [f"{count} {kind}" for count in patients for kind in sizes]
    yield f"| number | {' | '.join(heads)} | simulations |"
    yield f"|---|{'---|' * (len(heads) + 1)}"
    for name in names:
        times = simulations or STUDIES[name][1]
        columns = [run(name, kind, count, times) for count in patients for kind in sizes]
        for number, (_, _, drawn) in columns[0].items():
            yield f"| {number} | {' | '.join(cell(*column[number]) for column in columns)} | {drawn} |"


def merged(old: list[str], new: list[str]) -> list[str]:
    """Return the lines of a table with those rows in the place of old ones that simulate the same number."""
    rows = {line.split("|")[1].strip(): line for line in old[2:]}
    rows |= {line.split("|")[1].strip(): line for line in new[2:]}
    return [*new[:2], *rows.values()]


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, help="of each cell; default: those of `STUDIES`")
    parser.add_argument("--only", default=",".join(STUDIES))
    parser.add_argument("--patients", default=",".join(map(str, PATIENTS)))
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--write", type=Path, help="a page with the table between two comments: its rows are made new")
    settings = parser.parse_args()
    start, lines = time.process_time(), []
    patients = [int(count) for count in settings.patients.split(",")]
    for line in table(settings.only.split(","), settings.simulations, patients, settings.sizes.split(",")):
        lines.append(line)
        print(line, flush=True)
    print(f"{time.process_time() - start:.0f} s of one core")
    if settings.write:
        page = settings.write.read_text(encoding="utf-8")
        old = page[page.index(START) + len(START) : page.index(END)].split("\n\n")[1].splitlines()
        inside = "\n".join((START, "", *merged(old, lines), "", END))
        page = re.sub(f"{START}.*{END}", lambda match: inside, page, flags=re.DOTALL)
        settings.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
