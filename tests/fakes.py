"""Writes small data sets in the layouts of real ones; every picture is made up here."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (40, 32)  # height, width of a film


def draw_film(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Two dark lungs on a grey body, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    film = rng.normal(150 + 40 * rng.random(), 12, size)
    film[draw_lungs(size)] -= 90
    return np.clip(film, 0, 255).astype(np.uint8)


def draw_lungs(size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """The lungs of every film, bool [H, W]."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    return np.logical_or.reduce([((y - 0.5) / 0.35) ** 2 + ((x - middle) / 0.15) ** 2 < 1 for middle in (0.28, 0.72)])


def write_image(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write grey pixels (a mask as 0 and 255), with the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> Path:
    """Write rows with the columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_folder_fake(
    root: Path, classes: Iterable[str] = ("covid19", "normal"), patients: int = 10, splits: Iterable[str] = ("",)
) -> Path:
    """`root[/split]/CLASS/p03_1.png`: two films a patient, besides files that are no films."""
    for split in splits:
        for place, name in enumerate(classes):
            folder = root / split / name
            for film in range(2 * patients):
                patient = f"{split}{place}{film // 2:02d}"
                write_image(folder / f"p{patient}_{film % 2}.png", draw_film(1000 * place + film))
            (folder / "Thumbs.db").write_bytes(b"no film")
            (folder / ".hidden.png").write_bytes(b"no film")
            (folder / "notes.txt").write_text("no film")
    return root


def write_table_fake(root: Path, patients: int = 24, name: str = "manifest.csv", delimiter: str = ",") -> Path:
    """A table in the style of a collection of sources: lung masks in one column, of another kind for each source.

    Patient i has 1 to 3 films; source "north" draws lung fields, "south" lungs, "east" no masks; every eighth film
    has an infection mask. The masks of "south" are half as large as the films.
    """
    rows = []
    for patient in range(patients):
        source = ("north", "south", "east")[patient % 3]
        label = ("covid19", "pneumonia", "normal", "other")[patient // 3 % 4]
        for film in range(1 + patient % 3):
            stem = f"{source}{patient:02d}_{film}"
            write_image(root / "images" / source / f"{stem}.png", draw_film(10 * patient + film))
            row = {"path": f"images/{source}/{stem}.png", "source": source, "label": label}
            row |= {"patient_id": f" {source}-{patient} ", "view": "PA", "sex": "F", "age": "early 40s"}
            row |= {"lung_mask": "", "infection_mask": ""}
            if source != "east":
                row["lung_mask"] = f"lungs/{stem}.png"
                size = SIZE if source == "north" else (SIZE[0] // 2, SIZE[1] // 2)
                write_image(root / row["lung_mask"], draw_lungs(size))
            if len(rows) % 8 == 0:
                row["infection_mask"] = f"infections/{stem}.png"
                write_image(root / row["infection_mask"], draw_lungs() & (np.arange(SIZE[1]) < SIZE[1] // 2))
            rows.append(row)
    write_csv(root / name, rows, delimiter)
    return root


MASK_COLUMNS = {
    "lung_field": {"column": "lung_mask", "where": {"source": ["north"]}},
    "lung": {"column": "lung_mask", "where": {"source": "south"}},
    "infection": "infection_mask",
}
"""How `CSVDataModule` reads the masks of `write_table_fake`."""


def write_darkcovidnet_fake(root: Path, metadata: bool = True) -> Path:
    """The published folders, as a clone of the repository holds them, with names in the style of the real ones."""
    top = root / "X-Ray Image DataSet"
    for place, name in enumerate(("No_findings", "Pneumonia")):
        for film in range(30):
            number = 90_000_000 + 1000 * place + film // 3
            write_image(top / name / f"{number:08d}_{film % 3:03d}.png", draw_film(100 * place + film))
    rows = []
    for film in range(12):
        stem = f"covid-19-pneumonia-{film // 2}-day{1 + 4 * (film % 2)}"
        write_image(top / "Covid-19" / f"{stem}.jpeg", draw_film(500 + film))
        rows.append({"patientid": f"{film // 4}", "finding": "COVID-19", "filename": f"{stem}.jpg"})
    if metadata:
        write_csv(root / "metadata.csv", rows)
    return root
