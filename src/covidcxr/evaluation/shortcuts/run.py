"""The audit of data before training: probes, leaks and confounding, put together."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from covidcxr.data.collection import Collection
from covidcxr.data.curation.duplicates import find_duplicates
from covidcxr.data.records import Record
from covidcxr.data.splits import k_folds
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation.shortcuts.confounding import cross_table
from covidcxr.evaluation.shortcuts.features import (
    Header,
    Images,
    Segmenter,
    Sheet,
    Steps,
    look_at_images,
    no_steps,
    one_hot,
    reads_itself,
    shape_features,
)
from covidcxr.evaluation.shortcuts.leakage import find_leakage
from covidcxr.evaluation.shortcuts.probes import PROBES, Probe, ProbeScore, Question, cross_validate, train_and_test
from covidcxr.evaluation.shortcuts.result import DataAudit, QuestionAudit, judged
from covidcxr.evaluation.shortcuts.targets import ask_labels, ask_source, strata
from covidcxr.utils.threads import Progress

__all__ = ["audit_data", "AskedTable", "ask_all", "make_sheets"]

_PIXELS = ("border", "corners", "background", "grey", "thumbnail")


def make_sheets(
    data: Collection, records: Sequence[Record], images: Images, *, pixels: bool, segmenter: bool
) -> tuple[dict[str, Sheet], dict[str, str]]:
    """Return the features by probe, and from the other probes to why there are none.

    Args:
        data: The data set.
        records: Its images.
        images: What was read of them.
        pixels: Whether images were to be opened.
        segmenter: Whether lungs were to be taken out.
    """
    sheets = {**_columns(records), **_headers(data, len(records), images)}
    sheets["shape"] = _sheet(len(records), {n: shape_features(size) for n, size in images.sizes.items()})
    for name in _PIXELS:
        sheets[name] = _sheet(len(records), images.pixels.get(name, {}))
    kept = {name: sheet for name, sheet in sheets.items() if sheet.tells}
    skipped: dict[str, str] = {}
    for name in (*sheets, "facts", "header"):
        if name in kept or name in skipped:
            continue
        if name in _PIXELS and not pixels:
            skipped[name] = "images were not to be opened"
        elif name == "background" and not segmenter:
            skipped[name] = "no segmenter was given"
        elif name == "header" and (data.prepared is not None or reads_itself(data)):
            skipped[name] = "the images are not in their own files" if data.prepared is None else "a compact copy"
        elif name in (*_PIXELS, "header", "shape") and not images.sizes:
            skipped[name] = "no image is on the disk"
        elif name == "facts":
            skipped[name] = "fewer than two of them are stated"
        else:
            skipped[name] = "it is not stated, or the same for all images"
    return kept, skipped


def _columns(records: Sequence[Record]) -> dict[str, Sheet]:
    everywhere = np.ones(len(records), bool)
    columns = {name: one_hot([getattr(record, name) for record in records]) for name in ("source", "view", "sex")}
    columns["age"] = np.array([[np.nan if record.age is None else record.age] for record in records], float)
    sheets = {name: Sheet(values, everywhere) for name, values in columns.items()}
    facts = [sheets[name] for name in ("view", "sex", "age") if sheets[name].tells]
    if len(facts) > 1:
        sheets["facts"] = Sheet(np.concatenate([sheet.values for sheet in facts], axis=1), everywhere)
    return sheets


def _headers(data: Collection, count: int, images: Images) -> dict[str, Sheet]:
    if data.prepared is not None or not images.headers:
        return {}
    places = list(images.headers)
    found: list[Header] = list(images.headers.values())
    words = [one_hot([getattr(one, name) for one in found]) for name in ("format", "mode", "entries")]
    numbers = np.array([[one.file_bytes, one.quantization] for one in found], float)
    rows = np.concatenate([numbers, *words], axis=1)
    return {"header": _sheet(count, dict(zip(places, rows.tolist(), strict=True)))}


def _sheet(count: int, rows: Mapping[int, Sequence[float]]) -> Sheet:
    """Lay the rows of some images out among all images."""
    width = len(next(iter(rows.values()))) if rows else 1
    values = np.full((count, width), np.nan)
    known = np.zeros(count, bool)
    for number, row in rows.items():
        values[number], known[number] = row, True
    return Sheet(values, known)


@dataclass(frozen=True)
class AskedTable:
    """What all probes share.

    Attributes:
        records: The images.
        patients: Patient of each.
        folds: Fold of each; no patient is in two.
        sheets: Features by probe.
        least: Patients that an answer must have within one source or view.
        seed: Seeds classifiers and intervals.
    """

    records: Sequence[Record]
    patients: Integer[np.ndarray, " images"]
    folds: Integer[np.ndarray, " images"]
    sheets: dict[str, Sheet]
    least: int
    seed: int


def ask_all(
    table: AskedTable, asked: Sequence[Question], source: Question | None, seconds: dict[str, float], bar: Progress
) -> tuple[tuple[QuestionAudit, ...], QuestionAudit | None]:
    """Ask every probe every question.

    Args:
        table: What is known of the images.
        asked: The questions for the label.
        source: The question for the source; None = there is one source.
        seconds: Told what each probe took.
        bar: Told how many rounds of questions are done.
    """
    runs = sum(1 + _has_test(table.records) + len(_strata(table, question)) for question in asked) + bool(source)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        bar(done, runs)

    audits = []
    for question in asked:
        whole = _cross_validated(table, question, seconds)
        tick()
        official = _official(table, question)
        if _has_test(table.records):
            tick()
        within = {}
        for name, part in _strata(table, question).items():
            if found := _cross_validated(table, part, seconds):
                within[name] = found
            tick()
        audits.append(
            QuestionAudit(
                question.name,
                *_counts(question, table.patients),
                probes=whole,
                official=official,
                within=within,
                by_source=cross_table(
                    "source", question, [r.source for r in table.records], table.patients, table.seed
                ),
                by_view=cross_table("view", question, [r.view for r in table.records], table.patients, table.seed),
            )
        )
    if source is None:
        return tuple(audits), None
    scores = _cross_validated(table, source, seconds)
    tick()
    return tuple(audits), QuestionAudit("source", *_counts(source, table.patients), probes=scores)


def _counts(question: Question, patients: np.ndarray) -> tuple[dict[str, int], dict[str, int]]:
    images, people = {}, {}
    for number, name in enumerate(question.classes):
        own = question.labels == number
        images[name], people[name] = int(own.sum()), len(np.unique(patients[own]))
    return images, people


def _strata(table: AskedTable, question: Question) -> dict[str, Question]:
    return strata(table.records, question, table.patients, table.least)


def _askable(table: AskedTable, question: Question) -> Iterator[tuple[Probe, Sheet, Question]]:
    """Yield the probes that can be asked, with the question narrowed to the images that they know."""
    for probe in PROBES:
        sheet = table.sheets.get(probe.name)
        if sheet is None or probe.name == question.name:
            continue
        known = question.among(sheet.known, table.patients, len(np.unique(table.folds)))
        asked = Sheet(sheet.values, sheet.known & (known.labels >= 0))
        if len(known.classes) > 1 and asked.tells:
            yield probe, asked, known


def _cross_validated(table: AskedTable, question: Question, seconds: dict[str, float]) -> tuple[ProbeScore, ...]:
    found = []
    for probe, sheet, asked in _askable(table, question):
        score = cross_validate(probe, sheet, asked, table.folds, table.patients, table.seed)
        seconds[f"probe {probe.name}"] = seconds.get(f"probe {probe.name}", 0.0) + score.seconds
        found.append(score)
    return tuple(found)


def _official(table: AskedTable, question: Question) -> tuple[ProbeScore, ...]:
    """Train on the official training and validation images, score on the official test images."""
    test = np.array([record.split == "test" for record in table.records])
    train = np.array([record.split in ("train", "val") for record in table.records])
    if not test.any() or not train.any():
        return ()
    found = [
        train_and_test(probe, sheet, asked, train, test, table.patients, table.seed)
        for probe, sheet, asked in _askable(table, question)
    ]
    return tuple(one for one in found if one is not None)


def _has_test(records: Sequence[Record]) -> bool:
    return any(record.split == "test" for record in records)


def audit_data(
    data: Collection,
    *,
    name: str | None = None,
    folds: int = 5,
    seed: int = 0,
    pixels: bool = True,
    duplicates: bool = True,
    segmenter: Segmenter = "mini",
    max_images: int = 5000,
    cache: str | os.PathLike[str] | None = None,
    progress: Steps | None = None,
) -> DataAudit:
    """Audit a data set before anything is trained on it.

    Small classifiers are asked for the label, and for the source, of images of which they see no lung: a column of the
    table, the file's header, the image's shape, its border and corners, the image with the lungs removed (Maguolo and
    Nanni 2021; DeGrave 2021). What they score is no merit of a model. They are cross-validated with patients whole;
    official splits are set aside for that, and scored beside it.

    Images that are missing or cannot be read are counted, and the audit goes on without them.

    Args:
        data: The data set.
        name: Its name in the report; by default that of its class.
        folds: Folds of the cross-validation, from 3 up.
        seed: Seeds folds, classifiers and intervals: same seed, same figures.
        pixels: Open the images; else only tables and file headers are read.
        duplicates: Search for images that are there twice; opens every image.
        segmenter: Draws the lungs that are taken out: a bundled name, a folder, a Hub repository or a model; None =
            that probe is left out.
        max_images: Most images that the probes of pixels open; patients are drawn at random.
        cache: Folder that keeps what the search for duplicates read; None = not kept.
        progress: From the name of a step to a progress bar, as `covidcxr.datasets.console.show_progress`.

    Returns:
        The audit.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If the data set is not there or has no image.
        PretrainedError: If the segmenter cannot be had.
    """
    if max_images < 1:
        raise ConfigError(f"max_films must be 1 or more, not {max_images}.")
    steps, seconds, notes = progress or no_steps, dict[str, float](), list[str]()
    with _timed(seconds, "records"):
        records = _read(data, notes)
        patients = np.unique([record.patient for record in records], return_inverse=True)[1]
        there = _there(data, records)
    opened = _sample(there, patients, max_images, seed) if pixels else []
    if len(opened) < len(there) and pixels:
        notes.append(f"Pixels: {len(opened):,} of {len(there):,} images were opened, whole patients drawn at random.")
    with _timed(seconds, "films"):
        images = look_at_images(data, records, there, pixels=opened, segmenter=segmenter, steps=steps)
    copies = None
    if duplicates and pixels and there:
        with _timed(seconds, "duplicates"), steps("duplicates") as bar:
            every = [records[number] for number in there]
            copies = find_duplicates(every, read=data.load_image, cache=cache, progress=bar)
    sheets, skipped = make_sheets(data, records, images, pixels=pixels, segmenter=segmenter is not None)
    table = AskedTable(records, patients, _fold_numbers(records, folds, seed), sheets, max(folds, 10), seed)
    asked = ask_labels(data, records, patients, folds, notes)
    with steps("probes") as bar:
        questions, sources = ask_all(table, asked, ask_source(records, patients, folds), seconds, bar)
    _note_images(notes, data, images, len(records) - len(there))
    audit = DataAudit(
        name=name or type(data).__name__.removesuffix("DataModule"),
        images=len(records),
        patients=int(patients.max()) + 1,
        questions=questions,
        sources=sources,
        leakage=find_leakage(
            records, patients, copies=copies, exclusive=not any(r.findings for r in records), seed=seed
        ),
        skipped=skipped,
        missing=len(records) - len(there),
        failed=images.failed,
        tests=0,
        settings={"folds": folds, "seed": seed, "pixels": pixels, "opened": len(opened), "max_films": max_images},
        notes=notes,
        seconds=seconds,
    )
    return judged(audit)


def _read(data: Collection, notes: list[str]) -> list[Record]:
    """Read the records with whatever is wrong among them."""
    with data.collected_faults() as faults:
        records = data.unsplit_records()
    if not records:
        raise DatasetError(faults[0]) if faults else data.no_image()
    told = [fault for fault in faults if " files of the data set are missing" not in fault]
    notes += told[:3]
    if len(told) > 3:
        notes.append(f"{len(told) - 3} more faults of the data set; covidcxr datasets check tells them all.")
    if data.left_out:
        reasons = ", ".join(f"{images:,} ({reason})" for reason, images in data.left_out.most_common())
        notes.append(f"Images left out: {reasons}.")
    return records


def _there(data: Collection, records: Sequence[Record]) -> list[int]:
    """Return the places of the images that are on the disk."""
    if reads_itself(data):
        return list(range(len(records)))
    return [number for number, record in enumerate(records) if record.image_path.is_file()]


def _sample(there: Sequence[int], patients: np.ndarray, most: int, seed: int) -> list[int]:
    """Return the places of at most so many images, of whole patients."""
    if len(there) <= most:
        return list(there)
    images = Counter(patients[list(there)].tolist())
    kept, count = set[int](), 0
    for patient in np.random.default_rng(seed).permutation(sorted(images)).tolist():
        if count + images[patient] <= most:
            kept.add(patient)
            count += images[patient]
    return [number for number in there if int(patients[number]) in kept]


def _fold_numbers(records: Sequence[Record], folds: int, seed: int) -> Integer[np.ndarray, " images"]:
    numbers = np.zeros(len(records), int)
    for fold, roles in enumerate(k_folds(records, folds, seed=seed)):
        numbers[[record.split == "test" for record in roles]] = fold
    return numbers


def _note_images(notes: list[str], data: Collection, images: Images, missing: int) -> None:
    if missing:
        notes.append(f"{missing:,} images are not on the disk: of these only the table was read.")
    if images.failed:
        notes.append(f"{len(images.failed):,} images cannot be read; they are named in audit.json.")
    if images.without_lungs:
        notes.append(
            f"On {images.without_lungs:,} images no lungs were found; they do not count for the lungs removed."
        )
    if data.prepared is not None:
        notes.append(
            "This is a compact copy: its files were written anew, so their headers tell nothing of the originals'."
        )


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
