"""The quality table: every fault is planted in one image, and found in no other."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from covidcxr.cli import main
from covidcxr.data import CSVDataModule
from covidcxr.data.curation.image_scores import CRITERIA, clipped_share, measure_quality
from covidcxr.data.curation.quality import Look, QualityReport, check_quality
from covidcxr.errors import DatasetError
from covidcxr.phantom import draw_phantom

SIDE = 160


def framed(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[:, :40] = image[:, -40:] = 0
    image[:20] = image[-20:] = 0
    return image


PLANTED = {
    "dark": lambda image, rng: image * 0.15,
    "bright": lambda image, rng: 0.97 + image * 0.03,
    "low contrast": lambda image, rng: 0.45 + image * 0.08,
    "blurred": lambda image, rng: cv2.GaussianBlur(image, (0, 0), 4),
    "noisy": lambda image, rng: image + rng.normal(0, 0.15, image.shape),
    "small": lambda image, rng: cv2.resize(image, (60, 60), interpolation=cv2.INTER_AREA),
    "large": lambda image, rng: cv2.resize(image, (420, 420), interpolation=cv2.INTER_CUBIC),
    "odd aspect ratio": lambda image, rng: cv2.resize(image, (260, 100), interpolation=cv2.INTER_AREA),
    "large border": lambda image, rng: framed(image),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quality")
    rng = np.random.default_rng(0)
    drawn = [draw_phantom(number, size=(SIDE, SIDE)) for number in range(22)]
    lines = ["path,label,patient_id,source,lung_mask"]
    for number, phantom in enumerate(drawn):
        fault = list(PLANTED)[number - 12] if 12 <= number < 12 + len(PLANTED) else "plain"
        image = PLANTED[fault](phantom.image, rng) if fault in PLANTED else phantom.image
        name = f"{number:02d} {fault}.png"
        Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(root / name)
        lungs = phantom.masks["lung_field"] if fault == "plain" else None
        mask = ""
        if lungs is not None:
            mask = f"mask{number:02d}.png"
            lungs = np.roll(lungs, -lungs.any(1).argmax() - 8, axis=0) if number == 0 else lungs
            Image.fromarray(lungs.astype(np.uint8) * 255).save(root / mask)
        lines.append(f"{name},{'normal' if number % 2 else 'covid19'},p{number},north,{mask}")
    (root / "again.png").write_bytes((root / "03 plain.png").read_bytes())
    (root / "spoilt.png").write_bytes((root / "04 plain.png").read_bytes()[:900])
    lines += ["again.png,normal,p3,south,", "spoilt.png,normal,p4,south,"]
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


def data_of(folder: Path) -> CSVDataModule:
    return CSVDataModule(folder, mask_columns={"lung_field": "lung_mask"}, augment=None)


@pytest.fixture(scope="module")
def report(folder: Path) -> QualityReport:
    return check_quality(data_of(folder))


def test_every_fault_is_found_and_plain_images_have_none(report: QualityReport) -> None:
    flags = {image.record.image_id: image.flags for image in report.images}
    for fault in PLANTED:
        (name,) = (name for name in flags if name.endswith(f" {fault}.png"))
        assert fault in flags[name], (fault, flags[name])
    assert flags["00 plain.png"] == ("clipped field",)
    assert flags["03 plain.png"] == flags["again.png"] == ("exact copy",)
    assert flags["spoilt.png"] == ("not readable",)
    plain = [name for name in flags if name.endswith("plain.png") and name[:2] not in ("00", "03")]
    assert {flags[name] for name in plain} == {()}


def test_one_bad_file_costs_one_entry(report: QualityReport) -> None:
    (spoilt,) = (image for image in report.images if image.error)
    assert spoilt.record.image_id == "spoilt.png"
    assert not spoilt.scores
    assert "spoilt.png" in spoilt.error
    assert len(report.images) == 24


def test_copies_name_each_other(report: QualityReport) -> None:
    copies = {image.record.image_id: image.copies for image in report.images if image.copies}
    assert copies == {"03 plain.png": ("again.png",), "again.png": ("03 plain.png",)}


def test_flags_are_counted_by_label_and_source(report: QualityReport) -> None:
    by_source = report.by("source")
    assert by_source["south"] == {"images": 2} | dict.fromkeys(report.counts, 0) | {"exact copy": 1, "not readable": 1}
    assert sum(own["dark"] for own in report.by("label").values()) == report.counts["dark"]


def test_a_look_tells_what_scores_cannot(folder: Path) -> None:
    lungs = np.zeros((SIDE, SIDE), bool)
    lungs[:40, 30:130] = True
    plain = check_quality(data_of(folder), duplicates=False, look=lambda images: [Look() for _ in images])
    inverted = Look(lungs, ("inverted",))
    looked = check_quality(data_of(folder), duplicates=False, look=lambda images: [inverted] * len(images))
    assert "inverted" not in plain.counts
    assert looked.counts["inverted"] == 23  # all that can be read
    masked = {image.record.image_id: image.scores.get("lungs_at_border") for image in looked.images}
    assert masked["12 dark.png"] == pytest.approx(100 / SIDE)
    assert masked["05 plain.png"] == 0  # its own mask counts


def test_a_set_that_is_dark_throughout_is_flagged_and_a_uniform_one_is_not() -> None:
    dark = next(criterion for criterion in CRITERIA if criterion.flag == "dark")
    assert dark.exceeds(0.05, dark.limit([0.05] * 50))
    assert not dark.exceeds(0.31, dark.limit([0.5] * 49 + [0.31]))  # rare, but bright enough
    assert not dark.exceeds(float("nan"), dark.limit([]))


def test_hand_computed_scores() -> None:
    image = np.zeros((20, 40), np.float32)
    image[5:15, 10:30] = 0.5
    scores = measure_quality(image)
    assert scores["aspect"] == 2
    assert scores["side"] == pytest.approx(np.sqrt(800))
    assert scores["border"] == pytest.approx(1 - 200 / 800)
    assert scores["brightness"] == pytest.approx(0.5)
    assert scores["contrast"] == pytest.approx(0)
    lungs = np.zeros((10, 20), bool)
    lungs[0, :5] = lungs[3, 3] = True
    assert clipped_share(lungs) == 0.25
    assert np.isnan(clipped_share(np.zeros((4, 4), bool)))


def test_noise_is_measured_in_grey_levels() -> None:
    rng = np.random.default_rng(0)
    image = np.linspace(0.2, 0.8, 200 * 200).reshape(200, 200) + rng.normal(0, 0.04, (200, 200))
    assert measure_quality(image)["noise"] == pytest.approx(0.04, rel=0.05)


def test_a_data_set_without_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        check_quality(CSVDataModule(tmp_path))


def test_the_verb_writes_table_json_and_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["datasets", "quality", "csv", "--data.root", str(folder), "--out", str(tmp_path), "--no-duplicates"]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["flags"]["dark"] == 1
    assert printed["limits"]["dark"]["limit"] <= 0.3
    assert json.loads((tmp_path / "quality.json").read_text())["flags"] == printed["flags"]
    lines = (tmp_path / "quality.csv").read_text().splitlines()
    assert len(lines) == 25
    assert lines[0].startswith("image_id,label,source,patient_id,split,flags")
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
    assert main(words) == 0
    assert "images have a flag" in capsys.readouterr().out
