"""Label errors: by hand, beside cleanlab, and where labels are planted wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidcxr.cli import main
from covidcxr.errors import ConfigError
from covidcxr.evaluation.label_errors import confident_joint, find_label_errors
from covidcxr.evaluation.report.errors import label_error_page
from covidcxr.page import to_html


def planted(
    images: int = 600, flipped: float = 0.08, seed: int = 0, classes: str = "abc"
) -> tuple[list[dict[str, Any]], set[str]]:
    """Predictions by a fair model, and the images whose labels were changed."""
    rng = np.random.default_rng(seed)
    count = len(classes)
    truth = rng.choice(count, images, p=np.arange(count, 0, -1) / (count * (count + 1) / 2))
    labels = truth.copy()
    wrong = rng.random(images) < flipped
    labels[wrong] = (truth[wrong] + 1 + rng.integers(0, count - 1, wrong.sum())) % count
    logits = rng.normal(0, 1, (images, count))
    logits[np.arange(images), truth] += 2.6
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = [
        {
            "image_id": f"{n:04d}",
            "patient_id": f"p{n // 2}",
            "source": ("north", "south")[n % 2],
            "fold": "fold-0",
            "label": classes[labels[n]],
            **{f"probability_{name}": share for name, share in zip(classes, shares[n], strict=True)},
        }
        for n in range(images)
    ]
    return rows, {f"{n:04d}" for n in np.flatnonzero(wrong)}


def test_the_joint_by_hand() -> None:
    # thresholds: a (0.9 + 0.8 + 0.1) / 3 = 0.6, b (0.7 + 0.9) / 2 = 0.8
    # the third image is confident of b, the fourth of none
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1, 1])
    counts, thresholds = confident_joint(probabilities, labels)
    assert np.allclose(thresholds, [[0.6, 0.8]])
    assert np.allclose(counts, [[[2, 1], [0, 2]]])  # of label b one image is confident, of b: it stands for both
    twice, again = confident_joint(np.repeat(probabilities, 2, 0), np.repeat(labels, 2))
    weighted, same = confident_joint(probabilities, labels, np.full((1, 5), 2.0))
    assert np.allclose(twice, weighted)
    assert np.allclose(again, same)


def test_an_image_that_is_confident_of_two_classes_counts_for_the_more_probable() -> None:
    probabilities = np.array([[0.4, 0.35, 0.25], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2]])
    labels = np.array([0, 1, 2, 1])
    counts, thresholds = confident_joint(probabilities, labels)
    assert np.allclose(thresholds, [[0.4, 0.35, 0.4]])
    assert np.allclose(counts[0], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_the_same_as_cleanlab() -> None:
    """`estimate_joint` (which rounds to whole images) and `num_label_issues` of cleanlab 2.9.0 on these predictions."""
    rows, _ = planted_as_compared()
    (errors,) = find_label_errors(rows, resamples=20)
    theirs = np.array([[0.42, 0.0133, 0.0067], [0.0117, 0.2917, 0.02], [0.0083, 0.0117, 0.2167]])
    assert np.abs(errors.joint - theirs).max() < 1 / len(rows)
    assert len(errors.suspects) == 31


def planted_as_compared() -> tuple[list[dict[str, Any]], np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    labels = truth.copy()
    wrong = rng.random(600) < 0.08
    labels[wrong] = (truth[wrong] + 1 + rng.integers(0, 2, wrong.sum())) % 3
    logits = rng.normal(0, 1, (600, 3))
    logits[np.arange(600), truth] += 2.6
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [{f"probability_{name}": share for name, share in zip("abc", row, strict=True)} for row in shares]
    return [{"image_id": f"{n:04d}", "label": "abc"[labels[n]], **names[n]} for n in range(600)], wrong


def test_planted_errors_are_found_and_the_interval_holds_their_number() -> None:
    rows, wrong = planted(1000)
    (errors,) = find_label_errors(rows, resamples=200)
    suspects = {image.image_id for image in errors.suspects}
    assert len(suspects & wrong) / len(suspects) > 0.8
    assert len(suspects & wrong) / len(wrong) > 0.5
    value, low, high = errors.count
    assert low < len(wrong) < high
    assert low < value < high
    assert set(errors.by_class) == {"a", "b", "c"}
    assert set(errors.by_source) == {"north", "south"}
    assert [image.margin for image in errors.images] == sorted(image.margin for image in errors.images)


def test_patients_are_kept_whole() -> None:
    rows, _ = planted(200)
    copied = [row | {"image_id": f"{row['image_id']} {n}"} for row in rows for n in range(5)]
    alone = [row | {"patient_id": row["image_id"]} for row in copied]
    (whole,), (apart,) = (find_label_errors(own, resamples=200) for own in (copied, alone))
    assert whole.share.value == pytest.approx(apart.share.value)
    assert whole.share.high - whole.share.low > 1.5 * (apart.share.high - apart.share.low)


def test_images_that_trained_are_refused() -> None:
    rows, _ = planted(60)
    with pytest.raises(ConfigError, match="trained on 1 of the 60 images, such as 0007"):
        find_label_errors(rows, trained=["0007", "elsewhere"])
    with pytest.raises(ConfigError, match="cross-validation"):
        find_label_errors([row | {"split": "train"} for row in rows])


def test_predictions_of_unknown_origin_and_perfect_ones_are_doubted() -> None:
    rows, _ = planted(60)
    (unknown,) = find_label_errors([{k: v for k, v in row.items() if k != "fold"} for row in rows], resamples=20)
    assert "do not say by which fold" in unknown.notes[0]
    sure = [row | {f"probability_{name}": float(name == row["label"]) for name in "abc"} for row in rows]
    (perfect,) = find_label_errors(sure, resamples=20)
    assert any("right on 100.0%" in note for note in perfect.notes)
    assert perfect.share.value == 0
    assert perfect.suspects == []
    (fair,) = find_label_errors(rows, resamples=20)
    assert fair.notes == ()


def test_findings_are_searched_one_by_one_among_the_images_labelled_for_them() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        shown = number % 2
        row = {"image_id": f"{number:02d}", "patient_id": f"p{number}", "fold": "fold-0", "label_mass": 0}
        row |= {"label_effusion": None if number < 10 else shown, "probability_mass": 0.1}
        row["probability_effusion"] = float(np.clip(0.15 + 0.7 * shown + rng.normal(0, 0.05), 0, 1))
        rows.append(row)
    rows[20]["label_effusion"] = 1
    (errors,) = find_label_errors(rows, resamples=20)  # nobody has a mass: there is nothing to compare
    assert errors.target == "effusion"
    assert errors.classes == ("no effusion", "effusion")
    assert errors.unlabelled == 10
    assert len(errors.images) == 70
    assert [image.image_id for image in errors.suspects] == ["20"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"image_id": "a", "label": None, "probability_a": 0.4, "probability_b": 0.6}],
        [{"image_id": f"{n}", "label": "a", "probability_a": 0.4, "probability_b": 0.6} for n in range(9)],
        [{"image_id": "a", "dice_lung": 0.9}],
    ],
)
def test_nothing_to_compare_is_one_error(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="two classes or more"):
        find_label_errors(rows)


def test_the_verb_writes_page_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = planted(80, flipped=0.15)
    for row in rows:
        row["image_id"] += ".png"
        Image.fromarray(np.full((24, 24), 90, np.uint8)).save(tmp_path / row["image_id"])
    for name, columns in {
        "predictions.csv": list(rows[0]),
        "manifest.csv": ["image_id", "label", "patient_id"],
    }.items():
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if name == "manifest.csv":
                file.write("path,label,patient_id\n")
            else:
                writer.writeheader()
            writer.writerows(rows)
    out = tmp_path / "out"
    words = [str(tmp_path / "predictions.csv"), "--out", str(out), "--resamples", "50"]
    assert main(["label-errors", "--data", "csv", "--data.root", str(tmp_path), *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    suspects = printed["targets"][0]["suspects"]
    assert suspects
    assert json.loads((out / "label-errors.json").read_text()) == printed
    page = (out / "label-errors.html").read_text()
    assert page.count("data:image/png;base64") == len(suspects)
    assert len((out / "label-errors.csv").read_text().splitlines()) == 81
    assert main(["label-errors", *words]) == 0
    assert "are estimated to be wrong" in capsys.readouterr().out
    assert suspects[0]["image_id"] in (out / "label-errors.html").read_text()
    assert main(["label-errors", str(tmp_path / "gone.csv"), "--out", str(out)]) == 2


def test_the_page_says_what_the_model_cannot() -> None:
    rows, _ = planted(100)
    page = to_html(label_error_page(find_label_errors(rows, resamples=20), "mine"))
    assert "only a person who reads the image can tell" in page
    assert "Northcutt" in page
