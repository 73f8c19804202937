"""Infected fractions, predicted and read: on drawn masks, on phantoms whose masks are known, and in the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jaxtyping
import numpy as np
import pytest
from fakes import write_image
from huggingface_hub import ModelCard

from covidcxr import CSVDataModule, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.cli import main
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.evaluation.metrics.agreement import PLACES, image_agreement, infected_fractions, limits_of_agreement
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.predictions.run_pipeline import pipeline_rows
from covidcxr.evaluation.predictions.table import read_rows
from covidcxr.evaluation.report.masks import plot_agreement, score_agreement
from covidcxr.io.image import read_image, read_mask
from covidcxr.page import sections_of
from covidcxr.phantom import write_dataset
from covidcxr.pipeline.prediction import Prediction, as_image
from covidcxr.transforms.postprocess import lung_sides
from covidcxr.transforms.pyramid import ORIENTATIONS, UPRIGHT, Orientation

Masks = dict[str, np.ndarray]
NAMES = ("infection", "lung", "lung_field")


def block(size: tuple[int, int], *parts: tuple[int, int, int, int]) -> np.ndarray:
    """Rectangles: top, left, bottom, right."""
    mask = np.zeros(size, bool)
    for top, left, bottom, right in parts:
        mask[top:bottom, left:right] = True
    return mask


LUNGS = block((60, 60), (0, 5, 30, 25), (10, 35, 55, 55))


# --- fractions ---------------------------------------------------------------------------------------------------


def test_fractions_of_drawn_lungs_are_exact() -> None:
    """Zones are thirds of each lung by its own height, and the right lung lies on the image's left."""
    infection = block((60, 60), (0, 0, 10, 30), (10, 5, 20, 15), (40, 35, 55, 40), (58, 0, 60, 60))
    found = infected_fractions(infection, LUNGS)
    assert found == pytest.approx(
        {
            "lungs": (200 + 100 + 75) / 1500,
            "right": 0.5,
            "right_upper": 1,
            "right_middle": 0.5,
            "right_lower": 0,
            "left": 75 / 900,
            "left_upper": 0,
            "left_middle": 0,
            "left_lower": 0.25,
        }
    )
    assert list(found) == list(PLACES)


def test_a_lung_that_is_not_there_has_no_fraction() -> None:
    one = block((60, 60), (0, 5, 30, 25))
    assert infected_fractions(one, one) == dict.fromkeys(("lungs", *(n for n in PLACES if n.startswith("right"))), 1.0)
    assert infected_fractions(one, one & ~one) == {}
    with pytest.raises((ConfigError, jaxtyping.TypeCheckError)):  # the latter where shapes are checked on every call
        infected_fractions(one, LUNGS[:10])


def test_whose_lungs_count() -> None:
    infection = block((60, 60), (0, 5, 10, 25))
    wide = block((60, 60), (0, 5, 40, 25), (10, 35, 55, 55))
    nothing = np.zeros((60, 60), bool)
    drawn, true = {"infection": infection, "lung_field": wide}, {"infection": infection, "lung": LUNGS}
    assert image_agreement(drawn, true)["lungs_by"] == "reader"
    assert image_agreement(drawn, true)["infected_right"] == pytest.approx(200 / 600)
    found = image_agreement(drawn, {"infection": infection, "lung": nothing})
    assert (found["lungs_by"], found["reader_right"]) == ("pipeline", 0.25)
    assert image_agreement({"infection": infection, "lung": nothing}, {"infection": infection}) == {
        "lungs_by": "no-lungs"
    }
    assert image_agreement({"lung": LUNGS}, true) == {"lungs_by": "not-drawn"}
    assert image_agreement(drawn, {"lung": LUNGS}) == {}


@pytest.mark.parametrize(
    ("rows", "severity", "outside"),
    [(0, "none", None), (5, "mild", 0), (14, "mild", 0), (15, "moderate", 0), (30, "moderate", 0), (31, "severe", 0)],
)
def test_severity_is_that_of_the_reader(rows: int, severity: str, outside: float | None) -> None:
    lungs = block((60, 60), (0, 5, 60, 25), (0, 35, 60, 55))
    found = image_agreement(
        {"infection": lungs}, {"infection": lungs & block((60, 60), (0, 0, rows, 60)), "lung": lungs}
    )
    assert (found["severity"], found.get("reader_outside")) == (severity, outside)


def test_what_is_outlined_outside_the_lungs_is_told() -> None:
    outside = block((60, 60), (56, 0, 60, 60))
    found = image_agreement({"infection": outside}, {"infection": outside, "lung": LUNGS})
    assert (found["reader_lungs"], found["severity"], found["reader_outside"]) == (0, "mild", 1)


# --- bias and limits ---------------------------------------------------------------------------------------------


def test_bias_and_limits_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    read = rng.uniform(0, 0.8, 60)
    predicted = read + rng.normal(0.05, 0.1, 60)
    predicted[7] = np.nan
    found = limits_of_agreement(predicted, read, np.arange(60) // 2)
    differences = np.delete(predicted - read, 7)
    spread = 1.96 * differences.std(ddof=1)
    assert found.bias.value == pytest.approx(differences.mean())
    assert found.lower.value == pytest.approx(differences.mean() - spread)
    assert found.upper.value == pytest.approx(differences.mean() + spread)
    for one in (found.bias, found.lower, found.upper):
        assert one.low < one.value < one.high
        assert (one.count, one.patients) == (59, 30)
    assert len(found.predicted) == len(found.read) == 59


def test_images_of_one_patient_are_no_independent_images() -> None:
    differences = np.repeat([NormalDist(0, 0.1).inv_cdf((place + 0.5) / 20) for place in range(20)], 4)
    together = limits_of_agreement(differences, np.zeros(80), np.repeat(np.arange(20), 4))
    apart = limits_of_agreement(differences, np.zeros(80), np.arange(80))
    for line in ("bias", "upper"):
        wide, narrow = getattr(together, line), getattr(apart, line)
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
        assert wide.value == narrow.value


def test_intervals_of_bias_and_limits_hold_the_truth() -> None:
    """Of 95 % intervals of 24 patients with two images each, at least 85 in 100 hold what they were drawn from."""
    rng, held = np.random.default_rng(2), dict.fromkeys(("bias", "lower", "upper"), 0)
    truth = {"bias": 0.05, "lower": 0.05 - 1.96 * 0.1, "upper": 0.05 + 1.96 * 0.1}
    for _ in range(200):
        differences = 0.05 + np.sqrt(0.5) * 0.1 * (np.repeat(rng.normal(size=24), 2) + rng.normal(size=48))
        found = limits_of_agreement(differences, np.zeros(48), np.arange(48) // 2, resamples=300)
        for line, value in truth.items():
            held[line] += getattr(found, line).low <= value <= getattr(found, line).high
    assert min(held.values()) >= 0.85 * 200


def test_few_images_and_wrong_ones() -> None:
    one = limits_of_agreement(np.array([0.4]), np.array([0.3]), ["a"])
    assert one.bias.value == pytest.approx(0.1)
    assert np.isnan(one.lower.value)
    assert np.isnan(one.bias.low)
    with pytest.raises(ConfigError, match="nothing to compare"):
        limits_of_agreement(np.array([np.nan]), np.array([0.3]), ["a"])
    with pytest.raises(ConfigError, match="2 images but 1 patient ids"):
        limits_of_agreement(np.zeros(2), np.zeros(2), ["a"])


def test_the_plot_shows_every_image() -> None:
    read = np.array([0.1, 0.2, 0.6])
    found = limits_of_agreement(read + np.array([0.05, 0.1, -0.1]), read, ["a", "b", "c"])
    (axis,) = plot_agreement({"both lungs": found}).axes
    dots = axis.lines[-1]
    assert np.allclose(dots.get_ydata(), [5, 10, -10])
    assert np.allclose(dots.get_xdata(), [12.5, 25, 55])
    shown = [line.get_ydata()[0] for line in axis.lines[:3]]
    assert shown == pytest.approx([100 * one.value for one in (found.bias, found.lower, found.upper)])
    low, high = axis.get_ylim()
    assert low < 100 * found.lower.value
    assert high > 100 * found.upper.value


# --- pipelines on phantoms ---------------------------------------------------------------------------------------


class Images:
    """Images as a data module gives them, without one."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    def load_image(self, record: Record) -> np.ndarray:
        if record.source == "broken":
            raise ImageReadError("a broken image")
        return read_image(record.image_path)


class Drawer(Pipeline):
    """A pipeline that knows the true masks and changes them; it has no model."""

    def __init__(self, pictures: Images, change: Callable[[int, Masks], Masks], way: Orientation = UPRIGHT) -> None:
        self.classifier = None
        self._images, self._change, self._way = pictures, change, way

    def predict(self, pictures: Sequence[np.ndarray], *, batch_size: int) -> Iterator[Prediction]:  # type: ignore[override]
        places = {read_image(one.image_path).tobytes(): place for place, one in enumerate(self._images.records)}
        for picture in pictures:
            place = places[picture.tobytes()]
            masks = self._change(place, {n: read_mask(image_of(self._images.records[place], n)) for n in NAMES})
            yield Prediction("", None, {}, (), masks, as_image(picture), orientation=self._way)


def image_of(record: Record, name: str) -> Path:
    return record.image_path.parents[1] / name / record.image_path.name


def ask(pictures: Images, change: Callable[[int, Masks], Masks], way: Orientation = UPRIGHT) -> list[dict[str, Any]]:
    data: Any = pictures
    return pipeline_rows(Drawer(pictures, change, way), data, None, batch_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 16, size=(128, 128), patients=12)
    return folder


@pytest.fixture
def pictures(folder: Path) -> Images:
    return Images(CSVDataModule(folder, mask_columns={name: name for name in NAMES}).records)


def unchanged(place: int, masks: Masks) -> Masks:
    return masks


def bias_of(place: int) -> float:
    return 0.02 if place % 2 else 0.06


def enlarged(place: int, masks: Masks) -> Masks:
    """Add so much of each lung to the infection that its fraction rises by the bias."""
    infection = masks["infection"].copy()
    for lung in lung_sides(masks["lung_field"]):
        free = np.flatnonzero((lung & ~infection).ravel())
        extra = round(bias_of(place) * lung.sum())
        assert len(free) >= extra
        infection.ravel()[free[:extra]] = True
    return {**masks, "infection": infection}


def test_a_perfect_pipeline_agrees_without_bias_or_spread(pictures: Images) -> None:
    found = score_agreement(PredictionTable.read(ask(pictures, unchanged)), resamples=100)
    assert found is not None
    assert list(found.places) == list(PLACES)
    for one in found.places.values():
        assert (one.bias.value, one.lower.value, one.upper.value) == (0, 0, 0)
        assert (one.bias.low, one.bias.high, one.bias.count, one.bias.patients) == (0, 0, 16, 12)
        assert "fewer than 20 patients" in one.upper.note  # 12 do not show the shape of differences
    assert {one.value for one in found.dice.values()} == {1}
    assert found.dice["none"].count == sum(record.label == "normal" for record in pictures.records)
    assert sum(one.count for one in found.dice.values()) == 16
    assert found.lungs == {"reader": 16, "pipeline": 0}
    assert found.left_out == {}


def test_a_known_bias_is_found_with_its_limits(pictures: Images) -> None:
    found = score_agreement(PredictionTable.read(ask(pictures, enlarged)), resamples=100)
    assert found is not None
    biases = np.array([bias_of(place) for place in range(16)])
    for place in ("lungs", "right", "left"):
        one = found.places[place]
        assert one.bias.value == pytest.approx(biases.mean(), abs=1e-3)
        assert one.lower.value == pytest.approx(biases.mean() - 1.96 * biases.std(ddof=1), abs=2e-3)
        assert one.upper.value == pytest.approx(biases.mean() + 1.96 * biases.std(ddof=1), abs=2e-3)
    zones = [found.places[f"right_{zone}"].bias.value for zone in ("upper", "middle", "lower")]
    assert zones[0] > 0.1  # free pixels are taken from above
    assert zones[2] == 0
    assert found.dice["none"].value == 0


def test_images_that_do_not_count_are_counted(pictures: Images) -> None:
    none, no_lungs, refused, broken = pictures.records[:4]
    bare = {"infection": image_of(no_lungs, "infection")}
    pictures.records[:4] = [
        replace(none, mask_paths={"lung_field": image_of(none, "lung_field")}),
        replace(no_lungs, mask_paths=bare),
        refused,
        replace(broken, source="broken"),
    ]
    pictures.records[5] = replace(
        pictures.records[5], mask_paths={"infection": image_of(pictures.records[5], "infection")}
    )

    def change(place: int, masks: Masks) -> Masks:
        if place == 1:
            return {"infection": masks["infection"], "lung": masks["lung"] & False}
        return {} if place == 2 else masks

    found = score_agreement(PredictionTable.read(ask(pictures, change)), resamples=20)
    assert found is not None
    assert found.left_out == {"no-reader": 1, "no-lungs": 1, "not-drawn": 1, "error": 1}
    assert found.lungs == {"reader": 11, "pipeline": 1}
    assert found.places["lungs"].bias.count == 12
    told = str(sections_of(found))
    assert "1 without a reader's infection mask; 1 without lungs" in told
    assert "the reader's on 11 images" in told


def test_without_a_reader_or_without_infection_there_is_no_section(pictures: Images) -> None:
    lungs_only = Images([replace(one, mask_paths={"lung": image_of(one, "lung")}) for one in pictures.records[:3]])
    assert score_agreement(PredictionTable.read(ask(lungs_only, unchanged))) is None
    rows = ask(Images(pictures.records[:3]), lambda place, masks: {"lung": masks["lung"]})
    assert score_agreement(PredictionTable.read(rows)) is None


def test_sides_and_zones_of_a_turned_image_are_those_of_the_patient(pictures: Images, tmp_path: Path) -> None:
    way = ORIENTATIONS["turned-90"]
    turned = []
    for record in pictures.records[:4]:
        paths = {name: image_of(record, name) for name in NAMES}
        for name, path in {"images": record.image_path, **paths}.items():
            pixels = read_mask(path) if name in NAMES else np.round(255 * read_image(path)).astype(np.uint8)
            write_image(tmp_path / name / path.name, way.turn(pixels))
        paths = {name: tmp_path / name / path.name for name, path in paths.items()}
        turned.append(replace(record, image_path=tmp_path / "images" / record.image_path.name, mask_paths=paths))

    def lower(place: int, masks: Masks) -> Masks:
        return {**masks, "infection": masks["infection"] & masks["lung_field"]}

    upright = ask(Images(pictures.records[:4]), lower)
    lying = ask(Images(turned), lower, way)
    for one, other in zip(upright, lying, strict=True):
        names = [name for name in one if name.startswith(("infected_", "reader_"))]
        assert len(names) >= 18
        assert {name: other[name] for name in names} == {name: one[name] for name in names}


# --- the report --------------------------------------------------------------------------------------------------


def test_columns_that_are_wrong_are_refused(pictures: Images) -> None:
    rows = ask(Images(pictures.records[:3]), unchanged)
    with pytest.raises(ConfigError, match=r"'reader_lungs' must hold fractions in \[0, 1\]"):
        score_agreement(PredictionTable.read([{**row, "reader_lungs": 40} for row in rows]))
    with pytest.raises(ConfigError, match=r"'severity' must hold none, mild, moderate, severe, not 'bad'"):
        score_agreement(PredictionTable.read([{**row, "severity": "bad"} for row in rows]))


def test_the_report_of_a_pipeline_holds_the_section(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(
        "segmentation",
        "smp:fpn",
        ("infection",),
        "binary",
        network_args={"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32},
        preprocess=PreprocessConfig(image_size=(64, 64)),
    )
    mini = Pipeline.from_pretrained("mini")
    pipeline = Pipeline(lung_segmenter=mini.lung_segmenter, infection_segmenter=SegmentationModel(config))
    pipeline.save_pretrained(tmp_path / "pipeline")
    out = tmp_path / "report"
    words = ["evaluate", "--model", str(tmp_path / "pipeline"), "--data", "csv", "--data.root", str(folder)]
    words += ["--data.mask_columns", "{infection: infection, lung_field: lung_field}", "--split", "all"]
    assert main([*words, "--no-audit", "--no-gallery", "--resamples", "50", "--out", str(out)]) == 0
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))["agreement"]
    assert list(found["places"]) == list(PLACES)
    assert found["lungs"] == {"reader": 16, "pipeline": 0}
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Infected fraction</h2>" in text
    assert "Bland-Altman plots" in text
    assert "## Infected fraction" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    head = ModelCard.load(out / "MODEL_CARD.md").data
    assert (head.library_name, head.pipeline_tag) == ("covidcxr", "image-segmentation")
    assert {result.metric_type for result in head.eval_results} >= {"dice_infection"}
    again = score_agreement(PredictionTable.read(read_rows(out / "predictions.csv")), resamples=50)
    assert again is not None
    assert json.loads(json.dumps(again.to_dict())) == found
