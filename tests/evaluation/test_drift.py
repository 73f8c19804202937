"""Drift: label shift and covariate shift are told apart, and nothing is found where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidcxr.cli import main
from covidcxr.data import CSVDataModule, Record
from covidcxr.errors import ConfigError
from covidcxr.evaluation.shortcuts import compare_data
from covidcxr.evaluation.shortcuts.association import audit_quality
from covidcxr.evaluation.shortcuts.drift import Drift, _holm, find_drift
from covidcxr.evaluation.shortcuts.images import ImageFeatures
from covidcxr.evaluation.shortcuts.verdict import state_drift
from covidcxr.phantom import draw_phantom


def compare(
    seed: int,
    *,
    count: int = 240,
    covid_of_test: float = 0.4,
    older_test: float = 0.0,
    older_covid: float = 0.0,
    darker_test: float = 0.0,
    south_of_test: float = 0.5,
    images_a_patient: int = 1,
    classify: bool = False,
) -> Drift:
    """Images of two labels and two sources; age depends on the label, brightness on nothing."""
    rng, of_images = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    parts = (np.arange(count) % 3 == 0).astype(int)
    records, quality = [], {}
    features = ImageFeatures(sizes=dict.fromkeys(range(count * images_a_patient), (300, 320)))
    for patient in range(count):
        test = parts[patient] == 1
        covid = rng.random() < (covid_of_test if test else 0.4)
        south = rng.random() < (south_of_test if test else 0.5)
        age = 50 + 8 * rng.normal() + older_test * test + older_covid * covid
        bright = 0.5 + 0.05 * rng.normal() - darker_test * test
        for _ in range(images_a_patient):
            number = len(records)
            label = "covid19" if covid else "normal"
            source = "south" if south else "north"
            records.append(Record(Path(f"{number}.png"), label, f"p{patient}", source, age=float(age), sex="F"))
            quality[number] = {"brightness": bright + 0.001 * of_images.normal()}
            border = of_images.normal(0, 1, 12)
            border[0] += 20 * darker_test * test
            if classify:
                features.pixels.setdefault("border", {})[number] = border
    features.quality = quality
    owners = np.repeat(np.arange(count), images_a_patient)
    drift = find_drift(
        records,
        np.repeat(parts, images_a_patient),
        ("training", "test"),
        patients=owners,
        folds=owners // 3 % 3,
        images=features,
        seed=seed,
    )
    assert drift is not None
    return drift


def test_nothing_is_found_where_nothing_differs() -> None:
    drifts = [compare(seed) for seed in range(8)]
    quiet = [not (drift.label_shift or drift.covariate_shift or drift.told_apart) for drift in drifts]
    assert sum(quiet) >= 6  # one in twenty may differ by chance
    assert any("No difference between training and test images" in state_drift(drift) for drift in drifts)


def test_label_shift_alone_is_no_covariate_shift() -> None:
    """Older patients with covid, and more of them in the test part: ages differ, but not among images of one label."""
    drift = compare(3, covid_of_test=0.8, older_covid=20)
    assert drift.label_shift
    age = next(own for own in drift.covariates if own.name == "age")
    assert age.differs
    assert not age.differs_within
    assert drift.covariate_shift == []
    assert state_drift(drift).startswith("Label shift: ")
    assert "Covariate shift" not in state_drift(drift)


def test_covariate_shift_alone_is_no_label_shift() -> None:
    drift = compare(2, older_test=12)
    assert not drift.label_shift
    assert [own.name for own in drift.covariate_shift] == ["age"]
    assert state_drift(drift).startswith("Covariate shift of training and test images: they differ among images of one")


def test_sources_and_brightness_are_compared_with_intervals() -> None:
    drift = compare(3, south_of_test=0.95, darker_test=0.1, classify=True)
    assert {own.name for own in drift.covariate_shift} == {"source", "brightness"}
    source = next(own for own in drift.covariates if own.name == "source")
    south = source.difference["south"]
    assert 0.3 < south.low < south.value < south.high < 0.6
    assert source.second["south"].value - source.first["south"].value == pytest.approx(south.value)
    brightness = next(own for own in drift.covariates if own.name == "brightness").difference["mean"]
    assert brightness.low < -0.1 < brightness.high
    assert drift.told_apart.keys() == {"covid19", "normal"}
    assert drift.classifier is not None
    assert drift.classifier.auroc.low > 0.7


def test_patients_are_kept_whole() -> None:
    once, often = compare(4, older_test=3), compare(4, older_test=3, images_a_patient=4)
    ages = [next(own for own in drift.covariates if own.name == "age") for drift in (once, often)]
    assert ages[1].p_value == pytest.approx(ages[0].p_value, rel=0.3)  # as many patients, though four times the images
    widths = [own.difference["mean"].high - own.difference["mean"].low for own in ages]
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_too_few_patients_and_one_value() -> None:
    records = [Record(Path(f"{n}.png"), "normal", f"p{n}") for n in range(30)]
    settings = {"patients": np.arange(30), "folds": np.arange(30) % 3}
    assert find_drift(records, (np.arange(30) > 25).astype(int), ("a", "b"), **settings) is None
    drift = find_drift(records, np.arange(30) % 2, ("a", "b"), **settings)
    assert drift is not None
    assert drift.label is None
    assert drift.covariates == ()
    assert drift.to_dict()["classifier"] is None


def test_holm_by_hand() -> None:
    assert _holm([0.01, 0.04, 0.03, float("nan")]) == [True, False, False, False]
    assert _holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert _holm([]) == []


def test_quality_that_goes_with_a_label_is_a_shortcut_risk() -> None:
    rng = np.random.default_rng(0)
    records = [Record(Path(f"{n}.png"), "ab"[n % 2], f"p{n}", ("x", "y")[n // 2 % 2]) for n in range(120)]
    noise = [float(0.01 + 0.03 * (n % 2) * (rng.random() < 0.7) + 0.002 * rng.random()) for n in range(120)]
    scores = {n: {"noise": noise[n], "brightness": float(rng.uniform(0.4, 0.6))} for n in range(120)}
    features = ImageFeatures(quality=scores)
    quality = audit_quality(records, np.arange(120), features)
    assert quality is not None
    assert {(score, value) for score, value, _ in quality.clear("label")} == {("noise", "a"), ("noise", "b")}
    assert quality.clear("source") == []
    assert quality.by_label["a"] == {"images": 60} | {flag: 0 for flag in quality.by_label["a"] if flag != "images"}
    assert quality.by_label["b"]["noisy"] > 20
    assert quality.to_dict()["goes_with_source"] == []
    assert audit_quality(records, np.arange(120), ImageFeatures()) is None


def write_set(folder: Path, *, classes: str, first: int) -> Path:
    folder.mkdir()
    lines = ["path,label,patient_id,sex"]
    for number in range(first, first + 24):
        pixels = (draw_phantom(number, size=(64, 64)).image * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{classes[number % len(classes)]},p{number},{'FM'[number % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_two_data_sets_are_compared_by_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write_set(tmp_path / "mine", classes="aab", first=0)
    theirs = write_set(tmp_path / "theirs", classes="b", first=6)
    words = ["datasets", "drift", "csv", "--data.root", str(mine), "--other", "csv", "--other-root", str(theirs)]
    assert main([*words, "--no-pixels", "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parts"] == ["mine", "theirs"]
    assert printed["patients"] == [24, 24]  # one id in two sets is two patients
    assert printed["label_shift"]
    assert printed["label"]["difference"]["b"]["value"] == pytest.approx(2 / 3)
    assert "sex" not in printed["covariate_shift"]
    assert "Drift between mine and theirs" in (tmp_path / "out" / "drift.html").read_text()
    assert json.loads((tmp_path / "out" / "drift.json").read_text())["verdict"] == printed["verdict"]
    assert main([*words, "--no-pixels"]) == 0
    assert "Label shift: b is" in capsys.readouterr().out


def test_pixels_of_two_data_sets(tmp_path: Path) -> None:
    sets = [CSVDataModule(write_set(tmp_path / n, classes="ab", first=0), augment=None) for n in ("mine", "theirs")]
    drift = compare_data(*sets, names=("mine", "theirs"), segmenter=None, folds=3)
    means = {own.name: own.difference["mean"].value for own in drift.covariates if own.kind == "mean"}
    assert means["brightness"] == pytest.approx(0)
    assert not drift.told_apart
    with pytest.raises(ConfigError, match="names must differ"):
        compare_data(*sets, names=("a", "a"))
