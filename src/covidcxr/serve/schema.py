"""What goes over the wire, for checking what comes in and for the OpenAPI page."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from covidcxr.serve.post_test import post_test
from covidcxr.serve.store import Row

__all__ = ["CANNOT_SAY", "Film", "Films", "Prior", "Verdict", "film_of"]

CANNOT_SAY = "cannot say"


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Prior(_In):
    """Pre-test probabilities by class, which sum to 1; null = none are stated."""

    probabilities: dict[str, float] | None


class Verdict(_In):
    """What the reader says: a class, "cannot say" or null; and whether the film may train models."""

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
    """What a model says of a film. Probabilities are calibrated; fractions lie in [0, 1]."""

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
    """A kept film, its answer, and what its reader said."""

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
    """All kept films, newest first."""

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
