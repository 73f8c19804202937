"""What goes over the wire, for checking what comes in and for the OpenAPI page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from covidcxr import aliases
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.serve.store import Row

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "FORMULA",
    "INDETERMINATE",
    "Answer",
    "Image",
    "Images",
    "Prior",
    "Verdict",
    "check_prior",
    "display_name",
    "display_names",
    "post_test",
    "to_json",
    "uniform",
]

FORMULA = "post-test(c) = p(c) · pre-test(c) / trained(c), divided by its sum over all classes"
"""p: the model's calibrated probability; trained: the share of the class in training, which is taken out again."""

INDETERMINATE = "cannot say"
"""The verdict of a reader who cannot tell, as stores and exports hold it since 0.1.0."""

_WRITTEN = {"ards": "ARDS", "copd": "COPD", "mers": "MERS", "sars": "SARS", "tb": "TB", INDETERMINATE: "indeterminate"}


def display_name(name: str) -> str:
    """Return a class, a mask class or a verdict as a reader writes it.

    Args:
        name: As models and stores have it.

    Returns:
        "COVID-19" for `covid19`, "lung field" for `lung_field`, "indeterminate" for `cannot say`.
    """
    words = " ".join(name.replace("_", " ").split())
    words = re.sub(r"\bcovid[- ]?(19)?\b", "COVID-19", words, flags=re.IGNORECASE)
    return _WRITTEN.get(words) or " ".join(_WRITTEN.get(word, word) for word in words.split())


def display_names(names: Iterable[str]) -> dict[str, str]:
    """Return names as a reader writes them.

    Args:
        names: As models and stores have them.

    Returns:
        From each to its display name; of two that would read alike, each as it is.
    """
    shown = {name: display_name(name) for name in names}
    written = list(shown.values())
    return {name: words if written.count(words) == 1 else name for name, words in shown.items()}


def uniform(classes: Mapping[str, float] | tuple[str, ...]) -> dict[str, float]:
    """Return equal shares: what classifiers see that draw their training images balanced by class.

    Args:
        classes: The classes.

    Returns:
        By class, 1 divided by their number.
    """
    return {name: 1 / len(classes) for name in classes}


def check_prior(prior: Mapping[str, float], classes: tuple[str, ...]) -> dict[str, float]:
    """Check pre-test probabilities of exclusive classes, and scale them to a sum of exactly 1.

    Args:
        prior: By class, in [0, 1]; their sum is 1 to within 0.001.
        classes: All of them.

    Returns:
        By class, in [0, 1], sum 1.

    Raises:
        ConfigError: If a class is missing or unknown, or the numbers are no probabilities.
    """
    for name in prior.keys() ^ set(classes):
        raise ConfigError(
            f"Give the pre-test probability of each class; {name!r} is missing or wrong. {did_you_mean(name, classes)}"
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


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Prior(_In):
    """Pre-test probabilities by class, which sum to 1; null = none are given.

    Example:
        ```python
        from covidcxr.serve.schema import Prior

        assert Prior(probabilities=None).probabilities is None
        ```
    """

    probabilities: dict[str, float] | None


class Verdict(_In):
    """What the reader says: a class, "cannot say" or null; and whether the image may train models.

    `replaces` is when the verdict was saved that the reader saw, null for none: if another one has been given since,
    this one is refused with 409. Without `replaces` it is kept in any case.

    Example:
        ```python
        from covidcxr.serve.schema import Verdict

        assert Verdict(label="normal").consent is False
        ```
    """

    label: str | None
    comment: str = Field(default="", max_length=10_000)
    consent: bool = False
    replaces: str | None = None

    @field_validator("comment")
    @classmethod
    def _can_be_kept(cls, comment: str) -> str:
        """Refuse what no database takes as text, and no paper shows."""
        comment.encode()  # halves of letters (surrogates) raise a ValueError
        if "\0" in comment:
            raise ValueError("a comment may not hold the character 0")
        return comment


class SavedVerdict(BaseModel):
    """A verdict that is on the disk.

    Example:
        ```python
        from covidcxr.serve.schema import SavedVerdict

        SavedVerdict(label=None, comment="", consent=False, saved="2026-01-31T12:00:00+00:00")
        ```
    """

    label: str | None
    comment: str
    consent: bool
    saved: str


class Reason(BaseModel):
    """Why there is no label.

    Example:
        ```python
        from covidcxr.serve.schema import Reason

        Reason(id="lungs-not-found", words="No lungs were found.")
        ```
    """

    id: str
    words: str


class Sides(BaseModel):
    """A share of each lung, by the patient's sides; null = not known.

    Example:
        ```python
        from covidcxr.serve.schema import Sides

        Sides(right=0.25, left=None)
        ```
    """

    right: float | None
    left: float | None


class Areas(BaseModel):
    """The share of a mask; null = not known.

    `image`: of the image's area. Of findings also the part of the lungs, and of each lung by the patient's sides, that
    they cover.

    Example:
        ```python
        from covidcxr.serve.schema import Areas

        Areas(image=0.05, lungs=0.2, right=0.4, left=0.0)
        ```
    """

    image: float
    lungs: float | None
    right: float | None
    left: float | None


class Answer(BaseModel):
    """What a model says of an image. Probabilities are calibrated; fractions lie in [0, 1].

    Example:
        ```python
        from covidcxr.serve.schema import Answer

        assert "areas" in Answer.model_fields
        ```
    """

    model: str
    model_sha256: str
    label: str | None
    probabilities: dict[str, float]
    reasons: list[Reason]
    lung_fraction: float | None
    infected_fraction: float | None
    infected_interval: tuple[float, float] | None = None  # a store of 0.1.0 has none
    infected_by_lung: Sides
    masks: list[str]
    areas: dict[str, Areas] = {}  # a store of 0.1.0 has none
    plausible: list[str]
    thresholds: dict[str, float]
    classes: list[str]
    notes: list[str]


class Image(Answer):
    """A kept image, its answer, and what its readers said; `names` says how a reader writes its classes.

    Example:
        ```python
        from covidcxr.serve.schema import Image

        assert {"verdict", "posterior", "names"} <= set(Image.model_fields)
        ```
    """

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
    names: dict[str, str]


class Images(BaseModel):
    """Kept images, newest first: all of them (`complete`), or those that changed or came since a revision.

    Ask with `since` = the last `revision` to get what has changed; `removed` are the ids of those that went.

    Example:
        ```python
        from covidcxr.serve.schema import Images

        assert not Images(revision="5f3a.7", complete=False, films=[], removed=[]).films
        ```
    """

    films: list[Image]
    revision: str
    complete: bool
    removed: list[str]


def to_json(row: Row) -> dict[str, Any]:
    """Return an image as the REST interface gives it.

    Args:
        row: Of the store.

    Returns:
        What `Image` describes.
    """
    answer, verdict = row["answer"], row["verdict"]
    kept = ("id", "name", "uploaded", "width", "height", "sha256", "corrected", "prior", "identifiers")
    posterior = post_test(answer["probabilities"], row["prior"]) if row["prior"] and answer["probabilities"] else None
    saved = None if verdict is None else {name: verdict[name] for name in ("label", "comment", "consent", "saved")}
    given = [saved["label"]] if saved and saved["label"] else []
    return {
        **answer,
        **{name: row[name] for name in kept},
        "notes": [*row["notes"], *answer["notes"]],
        "revised": bool(row["corrected"]),
        "posterior": posterior,
        "verdict": saved,
        "names": display_names(dict.fromkeys((*answer["classes"], *answer["masks"], *given, INDETERMINATE))),
    }
