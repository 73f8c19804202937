"""The audit of data before training: probes, leaks and confounding, put together."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Integer

from covidcxr.data.collection import Collection
from covidcxr.data.duplicates import find_duplicates
from covidcxr.data.records import Record
from covidcxr.data.splits import k_folds
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation.audit.asking import AskedTable, ask_all
from covidcxr.evaluation.audit.films import Films, Segmenter, Steps, look_at_films, no_steps, reads_itself
from covidcxr.evaluation.audit.leakage import find_leakage
from covidcxr.evaluation.audit.questions import ask_labels, ask_source
from covidcxr.evaluation.audit.result import DataAudit, judged
from covidcxr.evaluation.audit.sheets import make_sheets

__all__ = ["audit_data"]


def audit_data(
    data: Collection,
    *,
    name: str | None = None,
    folds: int = 5,
    seed: int = 0,
    pixels: bool = True,
    duplicates: bool = True,
    segmenter: Segmenter = "mini",
    max_films: int = 5000,
    cache: str | os.PathLike[str] | None = None,
    progress: Steps | None = None,
) -> DataAudit:
    """Audit a data set before anything is trained on it.

    Small classifiers are asked for the label, and for the source, of films of which they see no lung: a column of the
    table, the file's header, the film's shape, its border and corners, the film with the lungs removed (Maguolo and
    Nanni 2021; DeGrave 2021). What they score is no merit of a model. They are cross-validated with patients whole;
    official splits are set aside for that, and scored beside it.

    Films that are missing or cannot be read are counted, and the audit goes on without them.

    Args:
        data: The data set.
        name: Its name in the report; by default that of its class.
        folds: Folds of the cross-validation, from 3 up.
        seed: Seeds folds, classifiers and intervals: same seed, same figures.
        pixels: Open the films; else only tables and file headers are read.
        duplicates: Search for films that are there twice; opens every film.
        segmenter: Draws the lungs that are taken out: a bundled name, a folder, a Hub repository or a model; None =
            that probe is left out.
        max_films: Most films that the probes of pixels open; patients are drawn at random.
        cache: Folder that keeps what the search for duplicates read; None = not kept.
        progress: From the name of a step to a progress bar, as `covidcxr.datasets.console.show_progress`.

    Returns:
        The audit.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If the data set is not there or has no film.
        PretrainedError: If the segmenter cannot be had.
    """
    if max_films < 1:
        raise ConfigError(f"max_films must be 1 or more, not {max_films}.")
    steps, seconds, notes = progress or no_steps, dict[str, float](), list[str]()
    with _timed(seconds, "records"):
        records = _read(data, notes)
        patients = np.unique([record.patient for record in records], return_inverse=True)[1]
        there = _there(data, records)
    opened = _sample(there, patients, max_films, seed) if pixels else []
    if len(opened) < len(there) and pixels:
        notes.append(f"Pixels: {len(opened):,} of {len(there):,} films were opened, whole patients drawn at random.")
    with _timed(seconds, "films"):
        films = look_at_films(data, records, there, pixels=opened, segmenter=segmenter, steps=steps)
    copies = None
    if duplicates and pixels and there:
        with _timed(seconds, "duplicates"), steps("duplicates") as bar:
            every = [records[number] for number in there]
            copies = find_duplicates(every, read=data.read_film, cache=cache, progress=bar)
    sheets, skipped = make_sheets(data, records, films, pixels=pixels, segmenter=segmenter is not None)
    table = AskedTable(records, patients, _fold_numbers(records, folds, seed), sheets, max(folds, 10), seed)
    asked = ask_labels(data, records, patients, folds, notes)
    with steps("probes") as bar:
        questions, sources = ask_all(table, asked, ask_source(records, patients, folds), seconds, bar)
    _note_films(notes, data, films, len(records) - len(there))
    audit = DataAudit(
        name=name or type(data).__name__.removesuffix("DataModule"),
        films=len(records),
        patients=int(patients.max()) + 1,
        questions=questions,
        sources=sources,
        leakage=find_leakage(
            records, patients, copies=copies, exclusive=not any(r.findings for r in records), seed=seed
        ),
        skipped=skipped,
        missing=len(records) - len(there),
        failed=films.failed,
        tests=0,
        settings={"folds": folds, "seed": seed, "pixels": pixels, "opened": len(opened), "max_films": max_films},
        notes=notes,
        seconds=seconds,
    )
    return judged(audit)


def _read(data: Collection, notes: list[str]) -> list[Record]:
    """Read the records with whatever is wrong among them."""
    with data.collected_faults() as faults:
        records = data.unsplit_records()
    if not records:
        raise DatasetError(faults[0]) if faults else data.no_film()
    told = [fault for fault in faults if " files of the data set are missing" not in fault]
    notes += told[:3]
    if len(told) > 3:
        notes.append(f"{len(told) - 3} more faults of the data set; covidcxr datasets check tells them all.")
    if data.left_out:
        reasons = ", ".join(f"{films:,} ({reason})" for reason, films in data.left_out.most_common())
        notes.append(f"Films left out: {reasons}.")
    return records


def _there(data: Collection, records: Sequence[Record]) -> list[int]:
    """Return the places of the films that are on the disk."""
    if reads_itself(data):
        return list(range(len(records)))
    return [number for number, record in enumerate(records) if record.image_path.is_file()]


def _sample(there: Sequence[int], patients: np.ndarray, most: int, seed: int) -> list[int]:
    """Return the places of at most so many films, of whole patients."""
    if len(there) <= most:
        return list(there)
    films = Counter(patients[list(there)].tolist())
    kept, count = set[int](), 0
    for patient in np.random.default_rng(seed).permutation(sorted(films)).tolist():
        if count + films[patient] <= most:
            kept.add(patient)
            count += films[patient]
    return [number for number in there if int(patients[number]) in kept]


def _fold_numbers(records: Sequence[Record], folds: int, seed: int) -> Integer[np.ndarray, " films"]:
    numbers = np.zeros(len(records), int)
    for fold, roles in enumerate(k_folds(records, folds, seed=seed)):
        numbers[[record.split == "test" for record in roles]] = fold
    return numbers


def _note_films(notes: list[str], data: Collection, films: Films, missing: int) -> None:
    if missing:
        notes.append(f"{missing:,} films are not on the disk: of these only the table was read.")
    if films.failed:
        notes.append(f"{len(films.failed):,} films cannot be read; they are named in audit.json.")
    if films.without_lungs:
        notes.append(f"On {films.without_lungs:,} films no lungs were found; they do not count for the lungs removed.")
    if data.prepared is not None:
        notes.append(
            "This is a compact copy: its files were written anew, so their headers tell nothing of the originals'."
        )


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
