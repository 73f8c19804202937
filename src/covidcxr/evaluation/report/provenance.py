"""Where the numbers come from: data and licence, command, versions, seeds, weights."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr import aliases
from covidcxr.io import pretrained
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.utils.plain import plain_result

if TYPE_CHECKING:
    from covidcxr.data import CXRDataModule, Record
    from covidcxr.evaluation.predictions.table import RunFolder

__all__ = ["Provenance", "data_facts", "hash_rows", "model_facts", "run_facts"]

__getattr__ = partial(aliases.find, __name__)

_PACKAGES = ("covidcxr", "torch", "numpy", "scikit-learn", "lightning", "timm")
_HASHED = ("image_id", "label", "patient_id", "split")


@dataclass(frozen=True)
class Provenance:
    """What one must know to repeat an evaluation.

    Attributes:
        command: As it was given.
        data: Facts about the images: see `data_facts`; of a bare table its path and hash.
        model: Facts about the model: its source, configs, and by file the SHA-256 of its weights.
        seed: Of the resampling.
        resamples: How often patients were resampled.
        date: UTC, to the second.
        versions: By package; and of Python.

    Example:
        ```python
        from covidcxr.evaluation.report import Provenance

        assert Provenance(seed=3).to_dict()["seed"] == 3 and "torch" in Provenance().versions
        ```
    """

    command: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    resamples: int = 1000
    date: str = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0).isoformat())
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: plain_result(getattr(self, name)) for name in self.__dataclass_fields__}


@sections_of.register
def _(provenance: Provenance) -> list[Section]:
    blocks: list[Block] = []
    if provenance.command:
        blocks.append(Words(f"Command: {provenance.command}"))
    facts = [
        ("date", provenance.date),
        ("seed; resamples", f"{provenance.seed}; {provenance.resamples}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in provenance.versions.items())),
    ]
    for table, caption in ((provenance.data, "Data"), (provenance.model, "Model")):
        kept = {name: value for name, value in table.items() if name != "counts" and value not in ("", None)}
        rows = [[name, _text(value)] for name, value in kept.items()]
        if rows:
            blocks.append(Table(["what", "value"], rows, caption))
    if counts := provenance.data.get("counts"):
        heads = ["split", "images", "patients", "sources"]
        keys = ("films", "patients", "sources")
        rows = [[split, *(str(numbers[key]) for key in keys)] for split, numbers in counts.items()]
        blocks.append(Table(heads, rows, "Images of each split"))
    blocks.append(Table(["what", "value"], facts, "Run"))
    return [Section("Where it comes from", "", blocks)]


def data_facts(data: CXRDataModule, name: str = "") -> dict[str, Any]:
    """Return what is known of a data set: name, licence, citation, caveats, counts of each split, and its hash.

    Args:
        data: The data module.
        name: Under which it is registered.

    Returns:
        Facts by name.
    """
    records = data.records
    counts = {}
    for split in ("train", "val", "test"):
        kept = [record for record in records if record.split == split]
        counts[split] = {
            "films": len(kept),
            "patients": len({record.patient for record in kept}),
            "sources": len({record.source for record in kept}),
        }
    return {
        "name": name or type(data).__name__,
        "homepage": data.homepage,
        "license": data.license,
        "citation": data.citation,
        "caveats": " ".join(data.caveats),
        "sources": ", ".join(sorted({record.source for record in records})),
        "left out": ", ".join(f"{count} {reason}" for reason, count in data.left_out.items()),
        "counts": counts,
        "sha256 of the list of images (image_id, label, patient_id, split, size of the file)": _hash_records(records),
    }


def model_facts(source: str) -> dict[str, Any]:
    """Return where a model comes from and the SHA-256 of its weights.

    Args:
        source: A bundled name, a folder or a Hub repository.

    Returns:
        Facts by name.
    """
    folder = pretrained.fetch(source)
    trained = "not known here: if it was trained on images of this test, its scores mean nothing"
    return {"source": source, "trained on": trained, "sha256 of the weights": _hash_weights(folder)}


def run_facts(run: RunFolder) -> dict[str, Any]:
    """Return how the model of a run was trained, and the SHA-256 of its weights.

    Args:
        run: Its folder.

    Returns:
        Facts by name.
    """
    steps = {step: run.config[step] for step in ("ensemble", "boosting") if step in run.config}
    model = (run.config.get("model") or {}).get("init_args") or steps
    data = run.config.get("data") or {}
    return {
        "run": run.name or run.folder.name,
        "model": json.dumps(model, sort_keys=True, default=str),
        "trained on": json.dumps(data, sort_keys=True, default=str),
        "seed of the training": run.config.get("seed_everything", ""),
        "parts": ", ".join(part for part in run.models if part),
        "sha256 of the weights": _hash_weights(run.folder),
    }


def _hash_records(records: Iterable[Record]) -> str:
    """Return the SHA-256 of a list of images: their names, labels and splits, and the sizes of their files."""
    return _hash(
        [*(str(getattr(record, name) or "") for name in _HASHED), str(_size(record.image_path))] for record in records
    )


def hash_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a table of predictions: every cell of every row.

    Args:
        rows: In any order.

    Returns:
        64 hexadecimal digits.
    """
    return _hash([f"{name}={row[name]}" for name in sorted(row)] for row in rows)


def _hash_weights(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of weights below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def _hash(entries: Iterable[Sequence[str]]) -> str:
    digest = hashlib.sha256()
    for line in sorted("\t".join(entry) for entry in entries):
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not every image is a file: slices of a volume, images that are not there
        return -1


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a folder that is not installed
            versions[name] = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return versions


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
