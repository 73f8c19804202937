"""What goes over the wire, for checking what comes in and for the OpenAPI page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.serve.store import Row

__all__ = [
    "CANNOT_SAY",
    "Film",
    "Films",
    "Prior",
    "Verdict",
    "film_of",
    "FORMULA",
    "check_prior",
    "post_test",
    "uniform",
]

FORMULA = "post-test(c) = p(c) · pre-test(c) / trained(c), divided by its sum over all classes"


"""p: the model's calibrated probability; trained: the share of the class in training, which is taken out again."""


def uniform(classes: Mapping[str, float] | tuple[str, ...]) -> dict[str, float]:
    """Return equal shares: what classifiers see that draw their training images balanced by class."""
    return {name: 1 / len(classes) for name in classes}


def check_prior(prior: Mapping[str, float], classes: tuple[str, ...]) -> dict[str, float]:
    """Return pre-test probabilities of exclusive classes, in the order of the classes, with a sum of exactly 1.

    Args:
        prior: By class, in [0, 1]; their sum is 1 to within 0.001.
        classes: All of them.

    Raises:
        ConfigError: If a class is missing or unknown, or the numbers are no probabilities.
    """
    for name in prior.keys() ^ set(classes):
        raise ConfigError(
            f"State the pre-test probability of each class; {name!r} is amiss. {did_you_mean(name, classes)}"
        )
    total = sum(prior.values())
    if not all(0 <= value <= 1 for value in prior.values()) or not abs(total - 1) <= 1e-3:
        raise ConfigError(f"Pre-test probabilities lie in [0, 1] and sum to 1, not to {total:.4g}.")
    return {name: prior[name] / total for name in classes}


def post_test(
    probabilities: Mapping[str, float], prior: Mapping[str, float], trained: Mapping[str, float] | None = None
) -> dict[str, float] | None:
    """Return post-test probabilities of exclusive classes (Bayes' rule; Saerens 2002, equation 4).

    A calibrated classifier gives p(class | image) under the shares `trained` of the classes in its training. Divided by
    them it is the likelihood of the image, up to a factor; times the pre-test probability it is the post-test one.

    Args:
        probabilities: The classifier's, calibrated, by class; in [0, 1].
        prior: Pre-test probabilities by class; in [0, 1], sum 1.
        trained: Shares of the classes in training; by default equal.

    Returns:
        By class, in [0, 1], sum 1; None if the image is impossible under the prior.
    """
    trained = trained or uniform(dict(probabilities))
    products = {name: value * prior[name] / trained[name] for name, value in probabilities.items()}
    total = sum(products.values())
    return {name: value / total for name, value in products.items()} if total > 0 else None


CANNOT_SAY = "cannot say"


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Prior(_In):
    """Pre-test probabilities by class, which sum to 1; null = none are stated."""

    probabilities: dict[str, float] | None


class Verdict(_In):
    """What the reader says: a class, "cannot say" or null; and whether the image may train models."""

    label: str | None
    comment: str = Field(default="", max_length=10_000)
    consent: bool = False

    @field_validator("comment")
    @classmethod
    def _can_be_kept(cls, comment: str) -> str:
        """Refuse what no database takes as text, and no paper shows."""
        comment.encode()  # halves of letters (surrogates) raise a ValueError
        if "\0" in comment:
            raise ValueError("a comment may not hold the character 0")
        return comment


class SavedVerdict(BaseModel):
    """A verdict that is on the disk."""

    label: str | None
    comment: str
    consent: bool
    saved: str


class Reason(BaseModel):
    """Why there is no answer."""

    id: str
    words: str


class Sides(BaseModel):
    """A share of each lung, by the patient's sides; null = not known."""

    right: float | None
    left: float | None


class Answer(BaseModel):
    """What a model says of an image. Probabilities are calibrated; fractions lie in [0, 1]."""

    model: str
    model_sha256: str
    label: str | None
    probabilities: dict[str, float]
    reasons: list[Reason]
    lung_fraction: float | None
    infected_fraction: float | None
    infected_by_lung: Sides
    masks: list[str]
    plausible: list[str]
    thresholds: dict[str, float]
    classes: list[str]
    notes: list[str]


class Film(Answer):
    """A kept image, its answer, and what its reader said."""

    id: str
    name: str
    uploaded: str
    width: int
    height: int
    sha256: str
    revised: bool
    corrected: list[str]
    prior: dict[str, float] | None
    posterior: dict[str, float] | None
    verdict: SavedVerdict | None
    identifiers: dict[str, str]


class Films(BaseModel):
    """All kept images, newest first."""

    films: list[Film]


def film_of(row: Row) -> dict[str, Any]:
    """Return a row of the store as a `Film`."""
    answer, verdict = row["answer"], row["verdict"]
    kept = ("id", "name", "uploaded", "width", "height", "sha256", "corrected", "prior", "identifiers")
    posterior = post_test(answer["probabilities"], row["prior"]) if row["prior"] and answer["probabilities"] else None
    said = None if verdict is None else {name: verdict[name] for name in ("label", "comment", "consent", "saved")}
    return {
        **answer,
        **{name: row[name] for name in kept},
        "notes": [*row["notes"], *answer["notes"]],
        "revised": bool(row["corrected"]),
        "posterior": posterior,
        "verdict": said,
    }
