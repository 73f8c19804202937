"""The audit of a data set before training: probes, leakage and confounding together."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, zip_longest
from typing import Any

import numpy as np
from jaxtyping import Integer

from covidcxr.data.collection import Collection, has_own_reader
from covidcxr.data.curation.duplicates import Duplicates, find_duplicates
from covidcxr.data.records import Record
from covidcxr.data.splits import number_folds
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation.shortcuts.association import QualityAudit, audit_quality
from covidcxr.evaluation.shortcuts.drift import Drift, find_drift
from covidcxr.evaluation.shortcuts.features import FeatureTable
from covidcxr.evaluation.shortcuts.images import (
    ImageFeatures,
    Segmenter,
    Steps,
    drawn_lungs,
    make_feature_tables,
    no_steps,
    read_images,
)
from covidcxr.evaluation.shortcuts.leakage import Leakage, find_leakage
from covidcxr.evaluation.shortcuts.probes import PROBES, Probe, ProbeScore, cross_validate, train_and_test
from covidcxr.evaluation.shortcuts.result import DataAudit, TargetAudit, mark_alarms
from covidcxr.evaluation.shortcuts.targets import Target, cross_table, label_targets, source_target, targets_within
from covidcxr.evaluation.shortcuts.verdict import state_findings, state_verdict
from covidcxr.utils.lazy import old_arguments
from covidcxr.utils.threads import Progress

__all__ = ["audit_data", "compare_data"]


@old_arguments(max_films="max_images")
def audit_data(
    data: Collection,
    *,
    name: str | None = None,
    folds: int = 5,
    seed: int = 0,
    pixels: bool = True,
    duplicates: bool = True,
    segmenter: Segmenter = "mini",
    max_images: int = 2000,
    cache: str | os.PathLike[str] | None = None,
    progress: Steps | None = None,
) -> DataAudit:
    """Audit a data set before anything is trained on it.

    Small classifiers predict the label, and the source, of images of which they see no lung: from a column of the
    table, the file's header, the image's shape, border and corners, or the image with the lungs removed (Maguolo and
    Nanni 2021; DeGrave 2021). They are cross-validated with whole patients; official splits are ignored for that, and
    scored separately. Images that are missing or cannot be read are counted and left out.

    Args:
        data: The data set.
        name: Its name in the report; by default that of its class.
        folds: Folds of the cross-validation, from 3 up.
        seed: Seeds folds, classifiers and intervals: same seed, same figures.
        pixels: Open the images; else only tables and file headers are read.
        duplicates: Search for duplicate images; opens every image.
        segmenter: Predicts the lungs that are removed, where not all images have masks of them: a bundled name, a
            folder, a Hub repository or a model; None = the probes without lungs are left out.
        max_images: Most images that the probes of pixels open; patients are drawn at random, labels by turns. More take
            longer and hardly show weaker shortcuts: an AUROC below 0.60 raises no alarm.
        cache: Folder that keeps what the search for duplicates read; None = not kept.
        progress: From the name of a step to a progress bar, as `covidcxr.utils.console.show_progress`.

    Returns:
        The audit.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If the data set is not there or has no image.
        PretrainedError: If the segmenter cannot be loaded.
    """
    if max_images < 1:
        raise ConfigError(f"max_images must be 1 or more, not {max_images}.")
    run = _Run(data, progress or no_steps, seed)
    opened = run.sample(max_images) if pixels else []
    lungs = drawn_lungs(run.records[number] for number in opened)
    images = run.read_images(opened, segmenter, lungs)
    copies = run.find_duplicates(cache) if duplicates and pixels and run.present else None
    tables, skipped = make_feature_tables(data, run.records, images, pixels=pixels, segmenter=segmenter is not None)
    targets, sources = run.score_probes(tables, folds)
    tables.clear()  # what follows needs the memory
    run.note_unread(images)
    settings = {"folds": folds, "seed": seed, "pixels": pixels, "opened": len(opened), "max_films": max_images}
    audit = run.result(name, targets, sources, run.leakage(copies, images), skipped, images.failed, settings)
    audit = replace(audit, drift=run.find_drift(images, folds), quality=run.quality(images))
    return replace(audit, verdict=state_verdict(audit), findings=tuple(state_findings(audit)))


def compare_data(
    data: Collection,
    other: Collection,
    *,
    names: tuple[str, str] = ("first", "second"),
    folds: int = 5,
    seed: int = 0,
    pixels: bool = True,
    segmenter: Segmenter = "mini",
    max_images: int = 2000,
    progress: Steps | None = None,
) -> Drift:
    """Compare two data sets: labels, what else is known of the images, their quality, and by a classifier.

    Args:
        data: The one.
        other: The other.
        names: What they are called in the result; two names that differ.
        folds: Folds of the classifier, from 3 up.
        seed: Seeds folds, classifier, permutations and intervals.
        pixels: Open the images; else only tables and file headers are read.
        segmenter: Predicts the lungs that the classifier does not see, where not all images of both have masks of
            them; None = without marks and texture.
        max_images: Most images of each that are opened; see `audit_data`.
        progress: From the name of a step to a progress bar.

    Returns:
        The differences, the second minus the first. Patients of the two sets count as different ones.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If a data set is not there, or has fewer than 10 patients.
        PretrainedError: If the segmenter cannot be loaded.
    """
    if max_images < 1 or names[0] == names[1]:
        raise ConfigError(f"max_images must be 1 or more and the two names must differ: {max_images}, {names}.")
    records: list[Record] = []
    images = ImageFeatures()
    runs = [_Run(own, progress or no_steps, seed) for own in (data, other)]
    opened = [run.sample(max_images) if pixels else [] for run in runs]
    lungs = drawn_lungs(run.records[number] for run, own in zip(runs, opened, strict=True) for number in own)
    for name, run, own in zip(names, runs, opened, strict=True):
        images.add(run.read_images(own, segmenter, lungs), len(records))
        records += [replace(record, patient_id=f"{name}: {record.patient}") for record in run.records]
    parts = np.arange(len(records)) >= len(records) - len(run.records)
    numbers = np.unique([record.patient for record in records], return_inverse=True)[1]
    drift = find_drift(
        records,
        parts.astype(int),
        names,
        patients=numbers,
        folds=np.array(number_folds(records, folds, seed=seed)),
        images=images,
        seed=seed,
    )
    if drift is None:
        raise DatasetError(f"{names[0]} and {names[1]} cannot be compared: one of them has fewer than 10 patients.")
    return drift


class _Run:
    """An audit while it runs: the records of the data set, and what is noted and timed on the way."""

    def __init__(self, data: Collection, steps: Steps, seed: int) -> None:
        self.data, self.steps, self.seed = data, steps, seed
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        with self.timed("records"):
            self.records = _read_records(data, self.notes)
            self.patients = np.unique([record.patient for record in self.records], return_inverse=True)[1]
            everywhere = has_own_reader(data)
            self.present = [n for n, record in enumerate(self.records) if everywhere or record.image_path.is_file()]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start

    def sample(self, most: int) -> list[int]:
        """Return the places of at most so many of the images on the disk, of whole patients, labels by turns."""
        if len(self.present) <= most:
            return self.present
        images = Counter(self.patients[self.present].tolist())
        by_label: dict[str, list[int]] = {}
        labels = {int(self.patients[number]): self.records[number].label or "" for number in self.present}
        for patient in np.random.default_rng(self.seed).permutation(sorted(images)).tolist():
            by_label.setdefault(labels[patient], []).append(patient)
        kept, total = set[int](), 0
        for patient in filter(lambda patient: patient is not None, chain(*zip_longest(*by_label.values()))):
            if total + images[patient] <= most:
                kept.add(patient)
                total += images[patient]
        opened = [number for number in self.present if int(self.patients[number]) in kept]
        self.notes.append(
            f"Pixels: {len(opened):,} of {len(self.present):,} images were opened, whole patients drawn at random, "
            f"labels by turns."
        )
        return opened

    def read_images(self, opened: Sequence[int], segmenter: Segmenter, lungs: str | None) -> ImageFeatures:
        if segmenter is not None and lungs is not None and opened:
            self.notes.append(f"Lungs: removed by the data set's own masks ({lungs}).")
        with self.timed("images"):
            return read_images(self.data, self.records, self.present, opened, segmenter, lungs, self.steps)

    def find_duplicates(self, cache: str | os.PathLike[str] | None) -> Duplicates:
        present = [self.records[number] for number in self.present]
        with self.timed("duplicates"), self.steps("duplicates") as bar:
            return find_duplicates(present, read=self.data.load_image, cache=cache, progress=bar)

    def score_probes(
        self, tables: dict[str, FeatureTable], folds: int
    ) -> tuple[tuple[TargetAudit, ...], TargetAudit | None]:
        inputs = _ProbeInputs(
            self.records,
            self.patients,
            np.array(number_folds(self.records, folds, seed=self.seed)),
            tables,
            max(folds, 10),
            self.seed,
        )
        targets = label_targets(self.data, self.records, self.patients, folds, self.notes)
        source = source_target(self.records, self.patients, folds)
        with self.steps("probes") as bar:
            return _run_probes(inputs, targets, source, self.seconds, bar)

    def find_drift(self, images: ImageFeatures, folds: int) -> Drift | None:
        """Compare the official training and test images."""
        parts = np.array([{"train": 0, "test": 1}.get(record.split or "", -1) for record in self.records])
        with self.timed("drift"):
            return find_drift(
                self.records,
                parts,
                ("training", "test"),
                patients=self.patients,
                folds=np.array(number_folds(self.records, folds, seed=self.seed)),
                images=images,
                seed=self.seed,
            )

    def quality(self, images: ImageFeatures) -> QualityAudit | None:
        with self.timed("quality"):
            return audit_quality(self.records, self.patients, images, self.seed)

    def note_unread(self, images: ImageFeatures) -> None:
        if missing := len(self.records) - len(self.present):
            self.notes.append(f"{missing:,} images are not on the disk: of these only the table was read.")
        if images.failed:
            self.notes.append(f"{len(images.failed):,} images cannot be read; audit.json lists them.")
        if images.without_lungs:
            self.notes.append(
                f"On {images.without_lungs:,} images no lungs were found; the probe without lungs leaves them out."
            )
        if self.data.prepared is not None:
            self.notes.append(
                "This is a compact copy: its files were rewritten, so their headers say nothing about the originals."
            )

    def leakage(self, copies: Duplicates | None, images: ImageFeatures) -> Leakage:
        exclusive = not any(record.findings for record in self.records)
        small = images.pixels.get("thumbnail")
        return find_leakage(
            self.records, self.patients, copies=copies, exclusive=exclusive, thumbnails=small, seed=self.seed
        )

    def result(
        self,
        name: str | None,
        targets: tuple[TargetAudit, ...],
        sources: TargetAudit | None,
        leakage: Leakage,
        skipped: dict[str, str],
        failed: dict[str, str],
        settings: dict[str, Any],
    ) -> DataAudit:
        return mark_alarms(
            DataAudit(
                name=name or type(self.data).__name__.removesuffix("DataModule"),
                images=len(self.records),
                patients=len({r.patient_id for r in self.records} - {None}) or None,
                targets=targets,
                sources=sources,
                leakage=leakage,
                skipped=skipped,
                missing=len(self.records) - len(self.present),
                failed=failed,
                tests=0,
                settings=settings,
                notes=self.notes,
                seconds=self.seconds,
            )
        )


def _read_records(data: Collection, notes: list[str]) -> list[Record]:
    """Read the records, and note the faults of the data set."""
    with data.collected_faults() as faults:
        records = data.unsplit_records()
    if not records:
        raise DatasetError(faults[0]) if faults else data.no_image()
    messages = [fault for fault in faults if " files of the data set are missing" not in fault]
    notes += messages[:3]
    if len(messages) > 3:
        notes.append(f"{len(messages) - 3} more faults of the data set; covidcxr datasets check lists them all.")
    if data.left_out:
        reasons = ", ".join(f"{images:,} ({reason})" for reason, images in data.left_out.most_common())
        notes.append(f"Images left out: {reasons}.")
    return records


@dataclass(frozen=True)
class _ProbeInputs:
    """What all probes share.

    Attributes:
        records: The images.
        patients: Patient of each.
        folds: Fold of each; no patient is in two.
        tables: Features by probe.
        least: Patients that a class must have within one source or view.
        seed: Seeds classifiers and intervals.
    """

    records: Sequence[Record]
    patients: Integer[np.ndarray, " images"]
    folds: Integer[np.ndarray, " images"]
    tables: dict[str, FeatureTable]
    least: int
    seed: int


def _run_probes(
    inputs: _ProbeInputs, targets: Sequence[Target], source: Target | None, seconds: dict[str, float], bar: Progress
) -> tuple[tuple[TargetAudit, ...], TargetAudit | None]:
    """Score every probe on every target; `seconds` receives the time of each probe."""
    groups = [targets_within(inputs.records, target, inputs.patients, inputs.least) for target in targets]
    columns = {name: [getattr(record, name) for record in inputs.records] for name in ("source", "view")}
    total = 2 * len(targets) + sum(map(len, groups)) + (source is not None)
    done = count(1)
    audits = []
    for target, parts in zip(targets, groups, strict=True):
        probes = _cross_validate(inputs, target, seconds)
        bar(next(done), total)
        official = _test(inputs, target)
        bar(next(done), total)
        within = {}
        for name, part in parts.items():
            if scores := _cross_validate(inputs, part, seconds):
                within[name] = scores
            bar(next(done), total)
        by_source, by_view = (
            cross_table(name, target, values, inputs.patients, inputs.seed) for name, values in columns.items()
        )
        audits.append(
            TargetAudit(target.name, *target.counts(inputs.patients), probes, official, within, by_source, by_view)
        )
    if source is None:
        return tuple(audits), None
    probes = _cross_validate(inputs, source, seconds)
    bar(next(done), total)
    return tuple(audits), TargetAudit("source", *source.counts(inputs.patients), probes)


def _usable_probes(inputs: _ProbeInputs, target: Target) -> Iterator[tuple[Probe, FeatureTable, Target]]:
    """Yield the probes that can be run, with the target restricted to the images that have features."""
    for probe in PROBES:
        table = inputs.tables.get(probe.name)
        if table is None or probe.name == target.name:
            continue
        part = target.select(table.known, inputs.patients, len(np.unique(inputs.folds)))
        table = FeatureTable(table.values, table.known & (part.labels >= 0))
        if len(part.classes) > 1 and table.varies:
            yield probe, table, part


def _cross_validate(inputs: _ProbeInputs, target: Target, seconds: dict[str, float]) -> tuple[ProbeScore, ...]:
    scores = []
    for probe, table, part in _usable_probes(inputs, target):
        score = cross_validate(probe, table, part, inputs.folds, inputs.patients, inputs.seed)
        seconds[f"probe {probe.name}"] = seconds.get(f"probe {probe.name}", 0.0) + score.seconds
        scores.append(score)
    return tuple(scores)


def _test(inputs: _ProbeInputs, target: Target) -> tuple[ProbeScore, ...]:
    """Train on the official training and validation images, score on the official test images."""
    test = np.array([record.split == "test" for record in inputs.records])
    train = np.array([record.split in ("train", "val") for record in inputs.records])
    if not test.any() or not train.any():
        return ()
    scores = (
        train_and_test(probe, table, part, train, test, inputs.patients, inputs.seed)
        for probe, table, part in _usable_probes(inputs, target)
    )
    return tuple(score for score in scores if score is not None)
