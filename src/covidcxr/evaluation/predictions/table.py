"""Tables of predictions, a row an image, as `covidcxr test` writes them: read, scored and written."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from covidcxr import aliases
from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.evaluation.metrics.agreement import SEVERITIES
from covidcxr.evaluation.metrics.bootstrap import Estimate, Statistics
from covidcxr.evaluation.metrics.classification import classification_statistics, finding_statistics
from covidcxr.evaluation.metrics.scores import format_estimate, headline, missing_intervals
from covidcxr.evaluation.metrics.segmentation import segmentation_metrics
from covidcxr.evaluation.predictions import MASKS, ROUNDING, UNBOUNDED, PredictionTable, Rows
from covidcxr.evaluation.predictions.run_pipeline import open_pipeline
from covidcxr.io.folders import replace_file
from covidcxr.io.pretrained import read_json, write_json
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.tasks.rows import predict_rows

if TYPE_CHECKING:
    from covidcxr.io.tables import Table, TableSource

__all__ = [
    "answer_statistics",
    "answered_rows",
    "read_rows",
    "score_rows",
    "score_sources",
    "write_scores",
    "print_scores",
    "RunFolder",
    "read_folder",
]

_PROBABILITY = "probability_"
__getattr__ = partial(aliases.find, __name__)


def score_rows(rows: Rows, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Score the rows of one test, each figure with its patient-clustered 95 % interval.

    Args:
        rows: What a task keeps in `rows`, or what was read from a CSV: `patient_id`, and scores of masks
            (`dice_lung`, ...; empty = the mask is not known), or `probability_CLASS` with `label` (exclusive classes)
            or `label_CLASS` (findings, empty = not labelled), or both. An image without label or answer is left out of
            the scores of answers.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        Estimates by name: those of `classification_metrics` or `finding_metrics`, and the means of masks.

    Raises:
        ConfigError: If there are no rows, they hold none of these columns, or a value is out of range.
    """
    predictions = PredictionTable.read(rows)
    predictions = predictions.in_order
    scored = predictions.scored
    scores = answer_statistics(scored).estimate(scored.patients, resamples, seed) if len(scored) else {}
    if predictions.masks:
        settings: dict[str, Any] = {"failures": True, "resamples": resamples, "seed": seed}
        scores |= segmentation_metrics(predictions.masks, predictions.patients, **settings)
    return scores


def read_rows(path: TableSource) -> list[dict[str, Any]]:
    """Read predictions, made here or elsewhere, for `score_rows` and all else that takes rows.

    Args:
        path: A table (CSV, TSV, Parquet, Excel, or a `pandas.DataFrame`), a row an image: `label` and
            `probability_CLASS` for each class (of two classes one will do), or `label_CLASS` (1, 0, empty = not
            labelled) and `probability_CLASS` for each finding, or scores of masks (`dice_lung`, ...). With `image_id`
            models can be compared, with `patient_id` intervals hold for patients; other columns are kept. What is
            empty, "nan" or the like (`covidcxr.io.tables.MISSING`) is not known.

    Returns:
        Rows; probabilities, findings and scores of masks are numbers, NaN where not known.

    Raises:
        DatasetError: If the table cannot be read.
        ConfigError: If columns are missing, or a value is wrong: says which, and in which line.

    Warns:
        UserWarning: If there are no patients: every image counts as one of its own, and intervals may be too narrow.
    """
    from covidcxr.io.tables import Table  # brings Lightning, which scores alone do without

    table = Table(path)
    numbers, exclusive = _check_columns(table)
    table.keep("label", exclusive)
    table.keep("severity", SEVERITIES)  # one of them is "none"
    rows, faults = [], []
    seen: dict[str, int] = {}
    for line, row in table:
        try:
            rows.append(row | _read_numbers(row, numbers))
            if exclusive:
                _check_answer(rows[-1], exclusive)
            if (image := row.get("image_id")) and seen.setdefault(image, line) != line:
                raise ConfigError(f"the image {image} stands in line {seen[image]} already")
        except ConfigError as error:
            faults.append(f"line {line}: {error}.")
    if faults:
        more = f" Besides, {len(faults) - 1} other lines have faults." if len(faults) > 1 else ""
        raise ConfigError(f"The predictions in {table.name} cannot be scored, {faults[0]}{more}")
    if "patient_id" not in table.columns:
        message = f"{table.name} has no patient_id: every image counts as a patient of its own, so where patients have "
        warnings.warn(message + "several images the intervals are too narrow.", UserWarning, stacklevel=2)
    return rows


def score_sources(rows: list[dict[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Score all images ("all") and, where there are several, the images of each source.

    Args:
        rows: A row an image, each with its `source`.

    Returns:
        From "all" or the source to its scores, by name.
    """
    scores = {"all": score_rows(rows)}
    sources = sorted({str(row["source"]) for row in rows})
    if len(sources) > 1:
        scores |= {source: score_rows([row for row in rows if row["source"] == source]) for source in sources}
    return scores


def write_scores(
    rows: list[dict[str, Any]], scores: dict[str, dict[str, Estimate]], output: Path, warning_signs: Sequence[str] = ()
) -> None:
    """Write `predictions.csv` (a row an image) and `scores.json` (all figures with their intervals).

    Args:
        rows: A row an image.
        scores: What `score_sources` returned.
        output: The folder.
        warning_signs: Kept in `scores.json` as "warnings", if there are any; see `find_warning_signs`.
    """
    import pandas as pd

    with replace_file(output / "predictions.csv") as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)
    plain = {part: {name: value.to_dict() for name, value in table.items()} for part, table in scores.items()}
    signs = {"warnings": list(warning_signs)} if warning_signs else {}
    write_json(output / "scores.json", plain | signs)


def print_scores(scores: dict[str, dict[str, Estimate]]) -> None:
    """Print one table: every score of all images, and the headline scores of each source.

    Args:
        scores: What `score_sources` returned.
    """
    from rich.table import Table

    from covidcxr.utils.console import print_line, print_table

    table = Table("images of", "score", "value [95 % interval]", "images", "patients")
    for column in table.columns[:3]:
        column.no_wrap = True
    for part, estimates in scores.items():
        shown = estimates if part == "all" else headline(estimates)
        for name in shown:
            estimate = estimates[name]
            if part == "all" or not math.isnan(estimate.value):
                cells = (part, name, format_estimate(estimate), str(estimate.count), str(estimate.patients))
                table.add_row(*cells)
        table.add_section()
    print_table(table)
    for sentence in missing_intervals(scores["all"]):
        print_line(sentence)
    print_line("Intervals of 95 % are over patients, not images.")


def answer_statistics(predictions: PredictionTable) -> Statistics:
    """Prepare the scores of a classifier, for weights that are not known yet; see `score_rows`.

    Args:
        predictions: Images that are labelled and have probabilities.

    Returns:
        The scores as functions of weights.
    """
    if predictions.exclusive:
        return classification_statistics(predictions.probabilities, predictions.labels, predictions.classes)
    return finding_statistics(predictions.probabilities, predictions.truths, predictions.classes)


def answered_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select the rows that have a label and probabilities; other images may have masks that are scored.

    Args:
        rows: A row an image.

    Returns:
        Some of the rows.
    """
    columns = {name for row in rows for name in row if name.startswith(_PROBABILITY)}
    needed = {*columns, "label"} if any("label" in row for row in rows) else columns
    return [row for row in rows if columns and all(row.get(name, "") not in ("", None) for name in needed)]


def _check_columns(table: Table) -> tuple[list[str], list[str]]:
    """Return the columns of numbers, and the exclusive classes one of which is the label of each row."""
    classes = [name.removeprefix(_PROBABILITY) for name in table.columns if name.startswith(_PROBABILITY)]
    masks = [name for name in table.columns if name.startswith(MASKS)]
    if not classes and not masks:
        raise ConfigError(
            f"{table.name} holds no predictions: it needs a column probability_CLASS for each class, with label, or "
            f"scores of masks such as dice_lung. Its columns: {', '.join(table.columns)}."
        )
    findings = [name for name in classes if f"label_{name}" in table.columns]
    missing = [f"label_{name}" for name in classes if name not in findings]
    if missing and (findings or "label" not in table.columns):
        raise ConfigError(
            f"{table.name} lacks {', '.join(missing) if findings else 'label'}: exclusive classes need their truth in "
            f"the column label, findings each in a column label_CLASS."
        )
    numbers = [*(_PROBABILITY + name for name in classes), *(f"label_{name}" for name in findings), *masks]
    return numbers, [] if findings else classes


def _read_numbers(row: Mapping[str, str], names: Sequence[str]) -> dict[str, float]:
    values = {}
    for name in names:
        text = row[name]
        try:
            values[name] = float(text or "nan")
        except ValueError:
            raise ConfigError(f"{name} is {text!r}, which is no number") from None
        if name.startswith("label_") and values[name] not in (0, 1) and not np.isnan(values[name]):
            raise ConfigError(f"{name} is {text}: a finding is 1 (shown), 0 (not shown) or empty (not labelled)")
        if values[name] < 0 or (values[name] > 1 and not name.startswith(UNBOUNDED)):
            raise ConfigError(f"{name} is {text}, which is not in [0, 1]")
    return values


def _check_answer(row: Mapping[str, Any], classes: Sequence[str]) -> None:
    label, total = row["label"], sum(row[_PROBABILITY + name] for name in classes)
    if len(classes) < 2:
        return
    if label and label not in classes:
        raise ConfigError(
            f"there is no probability for the label {label!r}. {did_you_mean(label, classes)}".rstrip(".")
        )
    if abs(total - 1) > ROUNDING:
        raise ConfigError(
            f"the probabilities sum to {total:.3f}, not 1. Of findings that may come together, give the truths as "
            f"label_CLASS"
        )


_PARTS = ("fold-", "without-")


@dataclass(frozen=True)
class RunFolder:
    r"""One run, whole or in parts (folds, held-out sources).

    Attributes:
        name: The variants that it stands for, "" if nothing was compared.
        folder: Where it lies.
        rows: Its predictions; of a run in parts those of all of them, each with its `fold`.
        histories: By part ("" = the run itself): an entry an epoch.
        models: By part: the folder of its model.
        config: What was trained on what.

    Example:
        ```python
        from pathlib import Path
        from covidcxr.evaluation.predictions.table import read_folder

        Path("run").mkdir()
        Path("run/predictions.csv").write_text("image_id,patient_id,label,probability_a,probability_b\n1,p,a,0.8,0.2\n")
        (run,) = read_folder(Path("run"))
        assert len(run.rows) == 1 and run.positive is None
        ```
    """

    name: str
    folder: Path
    rows: list[dict[str, Any]] = field(repr=False)
    histories: Mapping[str, list[dict[str, float]]] = field(repr=False)
    models: Mapping[str, Path]
    config: Mapping[str, Any] = field(repr=False)

    @property
    def positive(self) -> str | None:
        """The positive class that the config of its model says; None = it says none."""
        return self._model_config().get("positive")

    @property
    def coverage(self) -> float | None:
        """How often its plausible classes shall hold the truth, as the config of its model says; None = not said."""
        return self._model_config().get("coverage")

    @property
    def temperature(self) -> float:
        """The temperature that the config of its model says; 1 = it says none."""
        return float(self._model_config().get("temperature", 1.0))

    def _model_config(self) -> dict[str, Any]:
        """Return the config of its first model, or of the classifier of its first pipeline; empty if there is none."""
        names = ("config.json", "classifier/config.json")
        paths = (folder / name for folder in self.models.values() for name in names)
        return next((read_json(path) for path in paths if path.is_file()), {})

    def pipeline_of(self, row: Mapping[str, Any]) -> Pipeline | None:
        """Load the pipeline that predicted an image: of a run in parts, the part that tested it.

        Args:
            row: The row of the image.

        Returns:
            The pipeline; None where the run has no model.
        """
        folder = self.models.get(str(row.get("fold") or ""), self.models.get(""))
        return None if folder is None else _open(folder)

    def validation_rows(self, data: CXRDataModule) -> list[dict[str, Any]] | None:
        """Predict the validation images of a whole run.

        Args:
            data: What it was trained on, split alike.

        Returns:
            A row an image; None where the run has parts, no classifier or no validation images.
        """
        if "" not in self.models or len(self.models) > 1 or not any(record.split == "val" for record in data.records):
            return None
        pipeline = _open(self.models[""])
        return None if pipeline.classifier is None else predict_rows(pipeline.classifier, data, "val")


@cache
def _open(folder: Path) -> Pipeline:
    return open_pipeline(folder, lungs=_open_lungs(), outlines=True)


@cache
def _open_lungs() -> SegmentationModel:
    """Load the bundled lung segmenter once: the models of all parts of a run share it."""
    pipeline = open_pipeline("mini")
    assert pipeline.lung_segmenter is not None
    return pipeline.lung_segmenter


def read_folder(folder: Path) -> list[RunFolder]:
    """Read the runs of a folder: of one run that one, of compared runs all that are finished.

    Args:
        folder: As `covidcxr recipes run --output FOLDER` left it.

    Returns:
        The runs.

    Raises:
        ConfigError: If it holds no predictions.
    """
    if (folder / "predictions.csv").is_file():
        return [_read(folder, "")]
    runs = [
        _read(path.parent, path.parent.name)
        for path in sorted(folder.glob("*/predictions.csv"), key=lambda path: _place(folder, path.parent.name))
    ]
    if not runs:
        if (folder / "config.json").is_file() or (folder / "pipeline.json").is_file():
            raise ConfigError(
                f"{folder} is a saved model, without predictions: covidcxr evaluate --model {folder} --data NAME "
                f"--data.root DIR makes and scores them."
            )
        raise ConfigError(
            f"{folder} holds no predictions.csv, nor does a folder in it: it must be the output of `covidcxr recipes "
            f"run`, or give a table of predictions (CSV)."
        )
    if all(run.name.startswith(_PARTS) for run in runs):
        raise ConfigError(f"{folder} holds parts of a run that is not finished: give its command again, then evaluate.")
    return [run for run in runs if not run.name.startswith(_PARTS)]


def _read(folder: Path, name: str) -> RunFolder:
    parts = {"": folder} | {path.parent.name: path.parent for path in _parts(folder)}
    files = {part: place / "model" / "history.json" for part, place in parts.items()}
    histories = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in files.items() if path.is_file()}
    models = {part: place / "model" for part, place in parts.items() if (place / "model").is_dir()}
    config = folder / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return RunFolder(name, folder, read_rows(folder / "predictions.csv"), histories, models, settings or {})


def _parts(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*/predictions.csv")):
        if path.parent.name.startswith(_PARTS):
            yield path


def _place(folder: Path, name: str) -> tuple[int, str]:
    """Return where a run stands: as in the comparison, those that are not in it last."""
    path = folder / "comparison.json"
    order = list(json.loads(path.read_text(encoding="utf-8")).get("runs", {})) if path.is_file() else []
    return order.index(name) if name in order else len(order), name
