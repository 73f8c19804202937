"""The interval of the infected fraction: that it holds as often as it says, is kept, shown, and refuses nonsense."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_segmenter

from covidcxr.cli.main import main
from covidcxr.errors import ConfigError
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.report.masks import score_agreement
from covidcxr.pipeline.folder import predict_folder
from covidcxr.pipeline.parts import fingerprint
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.severity import InfectionInterval

INTERVAL = InfectionInterval(coverage=0.9, upto=(0.3, 1.0), below=(0.1, 0.25), above=(0.05, 0.3))


def images(patients: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Fractions whose error grows with their size and is alike within a patient."""
    random = np.random.default_rng(seed)
    read = np.repeat(random.random(patients), each)
    error = np.repeat(random.normal(0, 1, patients), each) * (0.02 + 0.15 * read)
    return (read + error).clip(0, 1), read, [f"{patient}" for patient in range(patients) for _ in range(each)]


def test_it_holds_as_often_as_it_says_and_is_wider_for_large_infections() -> None:
    held = []
    for seed in range(20):
        interval = InfectionInterval.fit(*images(120, 3, seed), coverage=0.8)
        predicted, read, _ = images(500, 1, 1000 + seed)
        ends = np.array([interval.of(value) for value in predicted])
        held.append(((ends[:, 0] <= read) & (read <= ends[:, 1])).mean())
        assert len(interval.upto) == 4
        assert interval.below[0] + interval.above[0] < interval.below[-1] + interval.above[-1]
    assert 0.78 < np.mean(held) < 0.86


def test_few_patients_make_fewer_groups_and_too_few_none() -> None:
    assert InfectionInterval.fit(*images(19, 1, 0)).upto == (1.0,)
    assert len(InfectionInterval.fit(*images(40, 1, 0)).upto) == 2
    with pytest.raises(ConfigError, match=r"at least 19 validation patients; there are 18"):
        InfectionInterval.fit(*images(18, 10, 0))
    with pytest.raises(ConfigError, match="coverage"):
        InfectionInterval.fit(*images(19, 1, 0), coverage=1.0)


def test_a_patient_with_many_images_counts_once() -> None:
    predicted, read, patients = images(60, 1, 0)
    crowd = np.full(500, 0.5)
    many = InfectionInterval.fit(
        np.append(predicted, crowd), np.append(read, crowd), [*patients, *["one"] * 500], coverage=0.8
    )
    assert max(many.above) > 0.05  # 500 perfect images of one patient do not make it narrow


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"upto": [0.3, 0.9]}, "ascend to 1"),
        ({"upto": [0.5, 0.3, 1.0]}, "ascend to 1"),
        ({"below": [0.1]}, "one number below and above"),
        ({"above": [0.1, float("nan")]}, "must be a number"),
        ({"above": "ab"}, "must be lists"),
        ({"coverage": 2}, "coverage"),
        ({"size": 1}, "Unknown key 'size'"),
    ],
)
def test_a_wrong_one_is_refused(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    Pipeline(lung_segmenter=tiny_segmenter("lung_field"), infected_interval=INTERVAL).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "pipeline.json").read_text())
    index["infected_interval"] |= changed
    (tmp_path / "pipeline.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=message):
        Pipeline.from_pretrained(tmp_path)


def test_it_is_kept_and_shown(tmp_path: Path) -> None:
    from PIL import Image

    parts = {"lung_segmenter": tiny_segmenter("lung_field", "infection"), "min_lung_area": 0.0}
    plain, pipeline = Pipeline(**parts), Pipeline(**parts, infected_interval=INTERVAL)
    assert fingerprint(plain) != fingerprint(pipeline)
    picture = np.random.default_rng(0).random((60, 50), dtype=np.float32)
    assert plain(picture).infected_interval is None
    prediction = pipeline(picture)
    assert prediction.infected_fraction is not None
    assert prediction.infected_interval == INTERVAL.of(prediction.infected_fraction)
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    assert again(picture).infected_interval == prediction.infected_interval
    # A mask that somebody drew is no longer predicted.
    assert pipeline.revise(picture, {"infection": prediction.masks["infection"]}).infected_interval is None

    Image.fromarray((picture * 255).astype(np.uint8)).save(tmp_path / "image.png")
    predict_folder([tmp_path / "image.png"], tmp_path / "out", model=pipeline, num_workers=0, progress=False)
    (answer,) = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert answer["infected_interval"] == list(pipeline(tmp_path / "image.png").infected_interval or ())
    assert "% as readers outline it)" in (tmp_path / "out" / "index.html").read_text()


def test_assemble_makes_it_and_evaluate_measures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_segmenter("lung_field", "infection").save_pretrained("segmenter")
    predicted, read, patients = images(40, 2, 0)
    rows = [
        {"image_id": f"{n}", "patient_id": patient, "dice_infection": 0.5, "infected_fraction": a, "reader_lungs": b}
        for n, (a, b, patient) in enumerate(zip(predicted, read, patients, strict=True))
    ]
    with Path("val.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, {"image_id": "unread", "dice_infection": 0.5}])
    Path("card.md").write_text("# Ours\n")
    words = "assemble --lungs segmenter --infected-interval val.csv --coverage 0.8 --card card.md --out pipeline"
    assert main(words.split()) == 0
    pipeline = Pipeline.from_pretrained("pipeline")
    assert pipeline.infected_interval == InfectionInterval.fit(predicted, read, patients, 0.8)
    assert pipeline.card == "# Ours\n"

    ends = [pipeline.infected_interval.of(value) for value in predicted]
    rows = [
        row | {"infected_low": low, "infected_high": high, "lungs_by": "reader", "severity": "mild"}
        for row, (low, high) in zip(rows, ends, strict=True)
    ]
    agreement = score_agreement(PredictionTable.read(rows), resamples=20)
    assert agreement is not None
    assert agreement.within is not None
    assert 0.8 <= agreement.within.value < 1


def test_assemble_says_which_table_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_segmenter("lung_field", "infection").save_pretrained("segmenter")
    Path("val.csv").write_text("image_id,patient_id,dice_infection,infected_fraction,reader_lungs\na,p,0.5,0.1,0.1\n")
    words = ["assemble", "--lungs", "segmenter", "--infected-interval", "val.csv", "--out", "pipeline"]
    assert main(words) == 2
    assert "--infected-interval: An interval" in (said := capsys.readouterr().err)
    assert "there are 1." in said
    assert not Path("pipeline").exists()
