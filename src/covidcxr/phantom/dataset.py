"""Many films: one after the other, or on disk as a data set with its manifest."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from covidcxr.errors import ConfigError
from covidcxr.phantom.draw import MASKS, Phantom, check_seed, draw_phantom
from covidcxr.phantom.types import LABELS, SEXES, VIEWS, PhantomLabel

SOURCES = ("phantom-a", "phantom-b")


def draw_dataset(
    count: int, *, seed: int = 0, labels: Sequence[PhantomLabel] = LABELS, size: tuple[int, int] = (512, 512)
) -> Iterator[Phantom]:
    """Draw `count` films of as many persons, the labels in turn, view and severity at random.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_count("count", count)
    if not labels:
        raise ConfigError(f"labels must name at least one of {', '.join(LABELS)}.")
    rng = np.random.default_rng(check_seed("seed", seed))
    for number in range(count):
        view, severity = VIEWS[rng.integers(2)], float(rng.uniform(0.2, 1))
        film_seed = int(rng.integers(2**31))
        yield draw_phantom(film_seed, label=labels[number % len(labels)], view=view, size=size, severity=severity)


def write_dataset(
    folder: str | Path, count: int, *, seed: int = 0, size: tuple[int, int] = (256, 256), patients: int | None = None
) -> Path:
    """Write a data set of drawn films: `images/`, a folder a mask class, and `manifest.csv`, whose path comes back.

    All masks are known: an infection mask without a set pixel says that there is no opacity. Each person has one
    label and one source; source, view, sex and age say nothing about the label. The films of "phantom-b" are
    grainier and an eighth lower.

    Args:
        folder: Where to; made if it is not there.
        count: Number of films.
        seed: Of everything that is random.
        size: Height and width in pixels.
        patients: Number of persons; the first ones have a film more when `count` is not a multiple of it.
            None = two for three films.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_count("count", count)
    patients = math.ceil(2 * count / 3) if patients is None else _check_count("patients", patients)
    rng = np.random.default_rng(check_seed("seed", seed))
    persons = [(int(rng.integers(2**31)), SEXES[rng.integers(2)], int(rng.integers(18, 90))) for _ in range(patients)]
    folder, rows = Path(folder), list[dict[str, object]]()
    for number in range(count):
        person = number % patients
        patient_seed, sex, age = persons[person]
        source = person // len(LABELS) % len(SOURCES)
        phantom = draw_phantom(
            int(rng.integers(2**31)),
            label=LABELS[person % len(LABELS)],
            view=VIEWS[rng.integers(2)],
            size=(max(64, size[0] * 7 // 8), size[1]) if source else size,
            severity=float(rng.uniform(0.2, 1)),
            noise=0.025 if source else 0.015,
            sex=sex,
            patient_seed=patient_seed,
        )
        paths = {name: f"{name}/phantom-{number:05d}.png" for name in ("images", *MASKS)}
        for name, pixels in {"images": phantom.image, **phantom.masks}.items():
            _write_png(folder / paths[name], pixels)
        patient: dict[str, object] = {
            "patient_id": f"person-{person:05d}",
            "source": SOURCES[source],
            "sex": sex,
            "age": age,
        }
        rows.append({"path": paths.pop("images"), "label": phantom.label, "view": phantom.view, **patient, **paths})
    columns = ["path", "label", "patient_id", "source", "view", "sex", "age", *MASKS]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return folder / "manifest.csv"


def _write_png(path: Path, pixels: Shaped[np.ndarray, "height width"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.round(pixels * np.float32(255)).astype(np.uint8))[1].tobytes())


def _check_count(name: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"{name} must be a whole number from 1 up, not {count!r}.")
    return count
