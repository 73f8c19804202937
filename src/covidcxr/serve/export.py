"""Export of readers' feedback as a data set: images with consent, and nothing that identifies a patient."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from covidcxr.data.datasets.feedback import FORMAT_VERSION, INDEX
from covidcxr.errors import ConfigError
from covidcxr.io.pretrained import write_json
from covidcxr.serve.schema import INDETERMINATE
from covidcxr.serve.store import Row, Store

__all__ = ["export_feedback"]


def export_feedback(store: Store, out: str | Path) -> dict[str, int]:
    """Write the images that may train models into a folder, which appears whole or not at all.

    It holds `feedback.json`, `films/ID.png`, corrected masks as `masks/ID.CLASS.png`, and the model's own masks as
    `drawn/films/ID.png.CLASS.png`. File names, comments and DICOM identifiers stay in the store; images of one DICOM
    patient share a number.

    Args:
        store: The store with readers' verdicts.
        out: A folder that does not exist yet, or is empty.

    Returns:
        The number of images ("films"), labels ("labels") and corrected masks ("corrected_masks").

    Raises:
        ConfigError: If the folder is not empty, or there is no image with consent.
        OSError: If it cannot be written.
    """
    target = Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(
            f"{target} already exists. Export into a new folder: consent may have been withdrawn since the last export."
        )
    rows = [row for row in reversed(store.images()) if row["verdict"] is not None and row["verdict"]["consent"]]
    if not rows:
        raise ConfigError("No reader consented to training with an image, so there is nothing to export.")
    draft = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        entries = [_write_image(store, row, draft, patient) for row, patient in zip(rows, _number(rows), strict=True)]
        classes = list(dict.fromkeys(name for row in rows for name in row["verdict"]["classes"]))
        write_json(draft / INDEX, {"format_version": FORMAT_VERSION, "classes": classes, "films": entries})
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    labels = sum(entry["label"] is not None for entry in entries)
    return {"films": len(entries), "labels": labels, "corrected_masks": sum(len(entry["masks"]) for entry in entries)}


def _write_image(store: Store, row: Row, folder: Path, patient: str | None) -> dict[str, Any]:
    verdict, name = row["verdict"], f"films/{row['id']}.png"
    _write(folder / name, store.picture(row["id"], "image"))
    corrected = {}
    for mask_class, is_corrected, png in store.masks(row["id"]):
        path = f"masks/{row['id']}.{mask_class}.png" if is_corrected else f"drawn/{name}.{mask_class}.png"
        _write(folder / path, png)
        if is_corrected:
            corrected[mask_class] = path
    return {
        "film": name,
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


def _number(rows: list[Row]) -> Iterator[str | None]:
    """Give each DICOM patient a number; None where the patient is unknown."""
    numbers: dict[str, str] = {}
    for row in rows:
        patient = row["identifiers"].get("PatientID")
        yield None if patient is None else numbers.setdefault(patient, f"patient-{len(numbers) + 1}")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
