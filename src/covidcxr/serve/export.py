"""From a store to a folder that trains models: images whose readers agreed, and nothing that names a patient."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from covidcxr.data.datasets.feedback import FORMAT_VERSION, INDEX
from covidcxr.errors import ConfigError
from covidcxr.io.folders import path_inside
from covidcxr.io.pretrained import write_json
from covidcxr.serve.schema import INDETERMINATE
from covidcxr.serve.store import Row, Store, masks
from covidcxr.utils.plain import user_path

__all__ = ["export_feedback"]


def export_feedback(store: Store, out: str | Path) -> dict[str, int]:
    """Write the images that may train models into a folder, which appears whole or not at all.

    It holds `feedback.json`, `films/ID.png`, corrected masks as `masks/ID.CLASS.png`, and those that the model
    predicted as `drawn/films/ID.png.CLASS.png`. File names, comments and DICOM identifiers stay in the store; images of
    one DICOM patient share a number.

    Args:
        store: Where readers' verdicts are.
        out: A folder that is not there yet, or is empty.

    Returns:
        How many images, labels and corrected masks it holds.

    Raises:
        ConfigError: If the folder holds something, or no reader agreed.
        OSError: If it cannot be written.
    """
    target = user_path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(
            f"{target} is there already. Export into a new folder: consent may have been withdrawn since."
        )
    rows = [row for row in reversed(store.rows()) if row["verdict"] is not None and row["verdict"]["consent"]]
    if not rows:
        raise ConfigError("No reader agreed that an image may train models, so there is nothing to export.")
    draft = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        images = [_write_image(store, row, draft, patient) for row, patient in zip(rows, _number(rows), strict=True)]
        classes = list(dict.fromkeys(name for row in rows for name in row["verdict"]["classes"]))
        write_json(draft / INDEX, {"format_version": FORMAT_VERSION, "classes": classes, "films": images})
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    labels = sum(image["label"] is not None for image in images)
    corrected = sum(len(image["masks"]) for image in images)
    return {"films": len(images), "labels": labels, "corrected_masks": corrected}


def _write_image(store: Store, row: Row, folder: Path, patient: str | None) -> dict[str, Any]:
    verdict, image = row["verdict"], f"films/{row['id']}.png"
    _write(folder / image, store.picture(row["id"], "image"))
    corrected = {}
    for name, is_corrected, png in _masks(store, row["id"]):
        place = f"masks/{row['id']}.{name}.png" if is_corrected else f"drawn/{image}.{name}.png"
        _write(path_inside(folder, place), png)  # the class is a model's word
        if is_corrected:
            corrected[name] = place
    return {
        "film": image,
        "sha256": row["sha256"],
        "patient": patient,
        "label": None if verdict["label"] == INDETERMINATE else verdict["label"],
        "verdict": verdict["label"],
        "saved": verdict["saved"],
        "masks": corrected,
        "model": verdict["model"],
        "model_sha256": verdict["model_sha256"],
        "answer": {name: verdict["answer"][name] for name in ("label", "probabilities")},
    }


def _masks(store: Store, image_id: str) -> Iterator[tuple[str, bool, bytes]]:
    with store.engine.connect() as connection:
        for row in connection.execute(select(masks).where(masks.c.film == image_id).order_by(masks.c.name)):
            yield row.name, row.corrected, bytes(row.image)


def _number(rows: list[Row]) -> Iterator[str | None]:
    """Give each DICOM patient a number; where nobody is known, the pixels' own hash tells the same image again."""
    numbers: dict[str, str] = {}
    for row in rows:
        patient = row["identifiers"].get("PatientID")
        yield None if patient is None else numbers.setdefault(patient, f"patient-{len(numbers) + 1}")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
