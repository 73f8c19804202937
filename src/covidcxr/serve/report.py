"""The report of one film: what is known of it, as a page that can be printed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from covidcxr import __version__
from covidcxr.page import Gallery, Page, Picture, Section, Table, Words
from covidcxr.serve.post_test import FORMULA, uniform

__all__ = ["film_report"]

_WIDE = 640
"""Longer side of a picture in the report, in pixels."""


def film_report(
    film: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None = None,
) -> Page:
    """Put a film's report together.

    Args:
        film: As the REST interface gives it.
        pixels: The film.
        masks: By mask class, at the film's size.
        heat: A class and what speaks for it, in [0, 1] at the film's size; None = not known.

    Returns:
        The page; every word in it that a client wrote is plain text.
    """
    facts = [
        ("Film", film["name"]),
        ("Uploaded", film["uploaded"][:19].replace("T", " ") + " UTC"),
        ("Size", f"{film['width']} x {film['height']}"),
        *((_words(name), value) for name, value in film["identifiers"].items()),
    ]
    sections = [
        Section("Film", blocks=[Gallery(list(_pictures(film, pixels, masks, heat)))]),
        _probabilities(film),
        *([_post_test(film)] if film["posterior"] else []),
        _areas(film),
        _reader(film),
        _origin(film),
    ]
    return Page("Chest film, read by a model", _answer(film), facts, sections)


def _answer(film: Mapping[str, Any]) -> str:
    label = film["label"]
    if label is not None:
        return f"The model answers: {_words(label)} ({film['probabilities'][label]:.0%})."
    why = " ".join(reason["words"] for reason in film["reasons"])
    return f"The model cannot say. {why}".strip()


def _pictures(
    film: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None,
) -> list[Picture]:
    from covidcxr.explain import Explanation
    from covidcxr.pipeline.prediction import Prediction

    drawn = Prediction("", None, {}, (), dict(masks), pixels).overlay()
    corrected = f"; corrected by the reader: {_list(film['corrected'])}" if film["corrected"] else ""
    pictures = [
        Picture(_png(pixels), "The film", "The film"),
        Picture(_png(drawn), "The film with outlines of its masks", f"Masks: {_list(film['masks'])}{corrected}"),
    ]
    if heat is not None:
        target, values = heat
        shown = Explanation(values, target, "gradcam", film["probabilities"][target]).overlay(pixels)
        caption = f"What speaks for {_words(target)} in the eyes of the model (Grad-CAM)"
        pictures.append(Picture(_png(shown), "The film with a heat map", caption))
    return pictures


def _probabilities(film: Mapping[str, Any]) -> Section:
    rows = [
        (_words(name), f"{value:.1%}", _threshold(film["thresholds"].get(name)), _yes(name in film["plausible"]))
        for name, value in film["probabilities"].items()
    ]
    reasons = [Words(reason["words"], warning=True) for reason in film["reasons"]]
    if not rows:
        return Section("Answer", "The classifier was not asked.", reasons)
    table = Table(("Class", "Probability", "Plausible from", "Plausible"), rows)
    lead = "Probabilities are calibrated for films like those of training, where all classes were equally frequent."
    return Section("Answer", lead, [table, *reasons])


def _post_test(film: Mapping[str, Any]) -> Section:
    trained = uniform(film["probabilities"])
    rows = [
        (
            _words(name),
            f"{value:.1%}",
            f"{film['prior'][name]:.1%}",
            f"{trained[name]:.1%}",
            f"{film['posterior'][name]:.1%}",
        )
        for name, value in film["probabilities"].items()
    ]
    columns = ("Class", "p (model)", "Pre-test (reader)", "Trained", "Post-test")
    return Section("Post-test probability", f"Bayes' rule: {FORMULA}.", [Table(columns, rows)])


def _areas(film: Mapping[str, Any]) -> Section:
    sides = film["infected_by_lung"]
    shares = (
        ("Lungs, of the film", film["lung_fraction"]),
        ("Infected, of both lungs", film["infected_fraction"]),
        ("Infected, of the patient's right lung", sides["right"]),
        ("Infected, of the patient's left lung", sides["left"]),
    )
    rows = [(what, f"{share:.1%}") for what, share in shares if share is not None]
    return Section("Areas", "" if rows else "No masks were drawn.", [Table(("What", "Share"), rows)] if rows else [])


def _reader(film: Mapping[str, Any]) -> Section:
    verdict = film["verdict"]
    if verdict is None:
        return Section("Reader", "No verdict was given.")
    rows = [
        ("Verdict", _words(verdict["label"] or "none")),
        ("Comment", verdict["comment"]),
        ("Saved", verdict["saved"][:19].replace("T", " ") + " UTC"),
        ("May train models", _yes(verdict["consent"])),
    ]
    return Section("Reader", blocks=[Table(("What", "Said"), rows)])


def _origin(film: Mapping[str, Any]) -> Section:
    rows = [
        ("Model", film["model"]),
        ("SHA-256 of the model", film["model_sha256"]),
        ("SHA-256 of the film's pixels", film["sha256"]),
        ("covidcxr", __version__),
    ]
    notes = [Words(note) for note in film["notes"]]
    return Section("Where this comes from", blocks=[Table(("What", "Which"), rows), *notes])


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_WIDE, _WIDE))
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _threshold(value: float | None) -> str:
    return "most probable" if value is None else f"{value:.1%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _list(names: list[str]) -> str:
    return ", ".join(map(_words, names)) or "none"
