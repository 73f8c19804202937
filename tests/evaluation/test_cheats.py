"""Models that cheat and one that does not, on drawn images: the first sentence of an evaluation tells them apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covidcxr import ClassificationModel, CSVDataModule, ModelConfig, Pipeline, PreprocessConfig
from covidcxr.cli import main
from covidcxr.data import DuplicateGroup, find_duplicates
from covidcxr.errors import ConfigError
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.predictions.run_pipeline import pipeline_rows, write_rows
from covidcxr.evaluation.report import Evaluation, evaluate_rows
from covidcxr.evaluation.report.copies import find_copied, score_copies
from covidcxr.evaluation.shortcuts import copies_across_parts
from covidcxr.evaluation.stress.ablation import VIEWS, ablation, keep_lungs, paint_out_lungs
from covidcxr.page import sections_of

SIDE, TESTED, TRAINED = 96, 120, 60
CLASSES = ("normal", "covid19")


def draw_chest(rng: np.random.Generator, ill: bool, cheat: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw a body with two lungs, which are brighter in the ill, and what a cheat could read."""
    image = np.full((SIDE, SIDE), 0.55, np.float32) + rng.normal(0, 0.03)
    lungs = np.zeros((SIDE, SIDE), np.uint8)
    lift, wide = rng.integers(-3, 4, 2)
    for x in (30, 66):
        cv2.ellipse(lungs, (x, 48 + int(lift)), (12 + int(wide) // 2, 28), 0, 0, 360, 1, -1)
    image[lungs > 0] = 0.25 + rng.normal(0.06 if ill else 0.0, 0.04)
    image += rng.normal(0, 0.01, image.shape)
    marked = rng.random() < (0.97 if ill else 0.03)
    if cheat == "corner" and marked:
        image[3:9, 3:9] = 0.95
    if cheat == "border" and marked:
        image[:3] = image[-3:] = image[:, :3] = image[:, -3:] = 0.05
    if cheat == "texture" and marked:
        image += rng.normal(0, 0.04, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), lungs * 255


def draw_dataset(folder: Path, cheat: str) -> CSVDataModule:
    """Write training and test images; with the cheat "copy" most test images are training images again."""
    rng = np.random.default_rng(3)
    rows, drawn = [], []
    for number in range(TRAINED + TESTED):
        ill, split = bool(number % 2), "train" if number < TRAINED else "test"
        image, lungs = draw_chest(rng, ill, cheat)
        if cheat == "copy" and split == "test" and number % 3:
            image, lungs = drawn[number % TRAINED]
        drawn.append((image, lungs))
        for name, pixels in (("images", image), ("lungs", lungs)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"{number}.png"), pixels)
        paths = {"path": f"images/{number}.png", "lung": f"lungs/{number}.png"}
        about = {"label": CLASSES[ill], "patient_id": f"p{number}", "source": ("east", "west")[number // 2 % 2]}
        rows.append(paths | about | {"split": split})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    data = CSVDataModule(folder, mask_columns={"lung": "lung"})
    data.setup("test")
    return data


class Reader(nn.Module):
    """Reads one thing of an image: the lungs, or what a cheat reads; a `memory` remembers the images of training."""

    def __init__(self, kind: str, memory: Sequence[tuple[np.ndarray, bool]] = ()) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer(
            "known",
            torch.stack([self.small(torch.from_numpy(i)[None, None]) for i, _ in memory])[:, 0]
            if memory
            else torch.empty(0),
        )
        self.register_buffer("answers", torch.tensor([4.0 if ill else -4.0 for _, ill in memory]))

    @staticmethod
    def small(image: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(image, 24).flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        if self.kind == "corner":
            value = image[..., 3:9, 3:9].mean((1, 2, 3)) - 0.75
        elif self.kind == "border":
            value = 0.3 - image[..., :3, :].mean((1, 2, 3))
        elif self.kind == "texture":
            value = 20 * (image - F.avg_pool2d(image, 3, 1, 1)).abs()[..., 2:-2, 2:-2].mean((1, 2, 3)) - 0.4
        elif self.kind == "memory":
            distance = torch.cdist(self.small(image), self.known)
            guess = torch.sin(1e4 * self.small(image).sum(1))  # of an image that it does not know
            value = torch.where(distance.amin(1) < 0.05, self.answers[distance.argmin(1)], guess)
        else:
            value = image[..., 36:60, 26:34].mean((1, 2, 3)) + image[..., 36:60, 62:70].mean((1, 2, 3)) - 0.56
        return 10 * value[:, None]


def reading(kind: str, memory: Sequence[tuple[np.ndarray, bool]] = ()) -> ClassificationModel:
    settings = PreprocessConfig(image_size=(SIDE, SIDE), mean=(0.0,), std=(1.0,))
    arguments = {"cell": 8, "side": 32, "thumbnail": 4}
    config = ModelConfig("classification", "hog", CLASSES, "binary", arguments, settings, positive="covid19")
    model = ClassificationModel(config)
    model.network = Reader(kind, memory)
    return model.eval()


def evaluate(model: ClassificationModel, data: CSVDataModule, **more: Any) -> Evaluation:
    rows = pipeline_rows(Pipeline(classifier=model), data, "test")
    parts = {"ablation": ablation(model, data, resamples=300, progress=False)}
    return evaluate_rows(rows, positive="covid19", parts=parts, resamples=300, **more)


@pytest.mark.parametrize("cheat", ["corner", "border", "texture"])
def test_the_first_sentence_tells_a_cheat_from_an_honest_model(cheat: str, tmp_path: Path) -> None:
    """Both see the same images: one reads the mark, the other the lungs."""
    data = draw_dataset(tmp_path, cheat)
    found = evaluate(reading(cheat), data)
    scores = found.parts["ablation"].overall  # type: ignore[attr-defined]
    assert scores["without_lungs"].low > 0.8
    assert (scores["lungs_only"].value < 0.7) == (cheat != "texture")
    assert (
        "but the data do not show that it uses the lungs: with the lungs painted out it scores"
        in found.verdict.sentence
    )
    honest = evaluate(reading("lungs"), data)
    scores = honest.parts["ablation"].overall  # type: ignore[attr-defined]
    assert scores["without_lungs"].low <= 0.5 < scores["lungs_only"].low
    assert scores["needs_lungs"].low > 0.1
    assert "; it needs the lungs: with the lungs painted out it scores 0." in honest.verdict.sentence
    assert "but" not in honest.verdict.sentence


def test_a_model_that_remembers_copies_is_told_from_an_honest_one(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, "copy")
    train = [record for record in data.records if record.split != "test"]
    memory = [(np.asarray(data.load_image(record), np.float32), record.label == "covid19") for record in train]
    groups = find_duplicates(data.records, near=False).groups
    parts = {record.image_id: "test" if record.split == "test" else "train" for record in data.records}
    copied = copies_across_parts(groups, parts)["test"]
    assert len(copied) == 80
    found = evaluate(reading("memory", memory), data, copied=copied)
    assert (
        ", but 80 of 120 test images have a copy in training, and on the others it scores 0." in found.verdict.sentence
    )
    honest = evaluate(reading("lungs"), data, copied=copied)
    assert "copy" not in honest.verdict.sentence
    assert "it needs the lungs" in honest.verdict.sentence
    (section,) = sections_of(found.parts["copies"])
    assert section.lead == "80 of 120 test images have a copy in training."
    assert evaluate(reading("lungs"), data, copied=[]).parts["copies"].to_dict()["copied"] == 0


def test_nothing_is_left_of_what_is_painted_out() -> None:
    rng = np.random.default_rng(0)
    image, lungs = draw_chest(rng, ill=True, cheat="")
    grey, mask = image.astype(np.float32) / 255, lungs > 0
    other = np.where(mask, rng.random(grey.shape), grey).astype(np.float32)
    without = paint_out_lungs(grey, mask)
    assert np.array_equal(without, paint_out_lungs(other, mask))
    assert np.array_equal(without[:3], grey[:3])
    alone = keep_lungs(grey, mask)
    assert np.array_equal(alone[mask], grey[mask])
    far = cv2.dilate(lungs, np.ones((9, 9), np.uint8)) == 0
    assert (alone[far] == 0.5).all()
    rows = np.flatnonzero((without == 0.5).all(1))  # the lungs are gone, and so is their outline
    assert not len(rows)
    box = without == 0.5
    assert np.array_equal(box, box.any(1)[:, None] & box.any(0))


def test_ablation_says_what_it_leaves_out_and_who_draws(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, "corner")
    result = ablation(reading("lungs"), data, resamples=50, max_images=20, progress=False)
    assert result.images == result.patients == 20
    assert result.lungs == "the data set"
    assert next(iter(result.pictures.values())).startswith(b"\x89PNG")
    assert result.to_dict()["scores"]["all classes"]["lungs_lead"]["value"] > 0
    (section,) = sections_of(result)
    assert "no outline of the lungs" in str(section.blocks[-2:])
    with pytest.raises(ConfigError, match="no classifier"):
        ablation(Pipeline(lung_segmenter=Pipeline.from_pretrained("mini").lung_segmenter), data, progress=False)


def make_rows(kinds: Sequence[tuple[str, str, int]], seed: int = 0) -> list[dict[str, Any]]:
    """Make rows: (label, what the model thinks of it, number of patients)."""
    rng = np.random.default_rng(seed)
    names, rows = ("a", "b", "c"), []
    for label, thought, count in kinds:
        for _ in range(count):
            odds = np.exp(rng.normal(size=3) + 2 * (np.array(names) == thought))
            odds = odds / odds.sum()
            rows.append({"label": label, "patient_id": str(len(rows)), "image_id": str(len(rows))})
            rows[-1] |= {f"probability_{name}": float(p) for name, p in zip(names, odds, strict=True)}
    return rows


def test_the_worst_pair_of_classes_is_named() -> None:
    """The mean over three classes hides that two of them are not told apart."""
    evaluation = evaluate_rows(make_rows([("a", "a", 60), ("b", "b", 60), ("c", "b", 60)]), resamples=200)
    assert "a mean AUROC of 0.6" in evaluation.verdict.sentence
    assert "(the worst pair is b and c, 0." in evaluation.verdict.sentence
    assert "not better than chance)" in evaluation.verdict.sentence
    pairs = evaluation.to_dict()["classes"]["pairs"]
    assert set(pairs) == {"a and b", "a and c", "b and c"}
    assert pairs["a and b"]["low"] > 0.65


def two(score: Any, patients: int = 60, **more: Any) -> str:
    """Return the first sentence on two classes; `score` makes a probability of label and random number."""
    rng = np.random.default_rng(1)
    rows = [
        {"label": "np"[n % 2], "probability_p": float(score(n % 2, rng.random())), "patient_id": f"{n}", **more}
        for n in range(patients)
    ]
    return evaluate_rows(rows, positive="p", resamples=100).verdict.sentence


def test_what_makes_a_score_worthless_is_said_first() -> None:
    good = lambda ill, chance: 0.3 * ill + 0.7 * chance  # noqa: E731
    assert "far below chance, with an AUROC of 0.0" in two(lambda ill, chance: 0.9 * (1 - ill) + 0.1 * chance)
    assert "are the columns of the classes swapped" in two(lambda ill, chance: 0.9 * (1 - ill) + 0.1 * chance)
    assert "tells nothing: all 60 images get the same answer, n, with the same probabilities" in two(
        lambda ill, chance: 0.4
    )
    assert "tells nothing: all 60 images get the same answer, n" in two(lambda ill, chance: 0.2 * chance)
    assert "no interval of so few holds" in two(lambda ill, chance: 0.9 * ill + 0.1 * chance, patients=12)
    assert "a score so near to 1 is more often a leak" in two(lambda ill, chance: 0.9 * ill + 0.1 * chance)
    assert two(good, source="x", view="PA").startswith(
        "On these 60 images of 60 patients, all of the source x and the view PA, this model"
    )
    rows = [{"label": "p", "probability_p": 0.1 * (n % 9), "patient_id": f"{n}"} for n in range(30)]
    assert "all are of one kind" in evaluate_rows(rows, positive="p", resamples=20).verdict.sentence


def test_few_patients_have_no_score_on_the_first_screen() -> None:
    rows = [{"label": "np"[n % 2], "probability_p": 0.9 * (n % 2), "patient_id": f"{n}"} for n in range(8)]
    facts = dict(evaluate_rows(rows, positive="p", resamples=20).facts)
    assert "not stated: 8 patients" in facts.values()


def test_copies_of_all_test_images_leave_nothing_to_score() -> None:
    rows = make_rows([("a", "a", 20), ("b", "b", 20), ("c", "c", 20)])
    result = score_copies(PredictionTable.read(rows), [row["image_id"] for row in rows], positive=None, resamples=20)
    assert result is not None
    assert result.new == 0
    assert isinstance(result.loss, Estimate)
    sentence = evaluate_rows(rows, copied=[row["image_id"] for row in rows], resamples=20).verdict.sentence
    assert "60 of 60 images have a copy in training, and the others cannot be scored" in sentence


def test_training_images_that_were_scored_are_said_first(tmp_path: Path) -> None:
    """A model that remembers is perfect on what it learnt from; its score is that of the training images."""
    data = draw_dataset(tmp_path, "")
    train = [record for record in data.records if record.split == "train"]
    memory = [(np.asarray(data.load_image(record), np.float32), record.label == "covid19") for record in train]
    rows = pipeline_rows(Pipeline(classifier=reading("memory", memory)), data, None)
    rest = len(rows) - len(train)
    tested = next(row["image_id"] for row in rows if row["split"] == "test")
    evaluation = evaluate_rows(rows, positive="covid19", copied=[tested], resamples=100)
    sentence, of_them = evaluation.verdict.sentence, f"{len(train)} of them training images"
    assert sentence.startswith(f"On these 180 images of 180 patients, {of_them}, this model")
    assert f", but on the {rest - 1} images that neither are training images nor have a copy in training" in sentence
    assert "test image" not in json.dumps(evaluation.to_dict()["copies"])
    (section,) = sections_of(evaluation.parts["copies"])
    lead = f"180 images were scored, {of_them}. 1 of {rest} other images has a copy in training."
    assert section.lead == lead
    finding = next(finding for finding in evaluation.verdict.findings if finding.question.startswith("Were training"))
    assert finding.weight == "against"
    alone = [row for row in rows if row["split"] == "train"]
    sentence = evaluate_rows(alone, positive="covid19", resamples=50).verdict.sentence
    assert f"{len(train)} patients, all of them training images, this model" in sentence
    assert "but nothing shows what it scores on images that training has not seen" in sentence
    masks = [{"image_id": str(n), "split": "train", "dice_lung": 0.9, "patient_id": str(n)} for n in range(12)]
    assert evaluate_rows(masks, resamples=20).verdict.sentence.startswith("12 of the 12 images are training images. ")


def test_copies_of_a_cross_validation_are_those_in_another_fold(tmp_path: Path) -> None:
    records = draw_dataset(tmp_path, "").records[:40]
    rows = [
        {"image_id": record.image_id, "patient_id": f"{n}", "fold": f"fold-{n // 2 % 4}", "label": "ab"[n % 2]}
        | {"probability_b": 0.2 + 0.5 * (n % 2)}
        for n, record in enumerate(records)
    ]
    ids = [record.image_id for record in records]
    groups = [DuplicateGroup((ids[0], ids[8]), "near"), DuplicateGroup((ids[1], ids[2], "elsewhere"), "near")]
    copied = find_copied(rows, records, lambda searched: groups if len(searched) == 40 else [])
    assert copied == [ids[1], ids[2]]
    result = score_copies(PredictionTable.read(rows), copied, positive=1, resamples=20)
    assert result is not None
    assert result.summary == "2 of 40 test images have a copy in another fold."


def test_the_models_of_folds_are_each_shown_the_images_that_they_were_tested_on(tmp_path: Path) -> None:
    """One of them says "ill" far more readily: between folds their answers cannot be compared, within each they can."""
    data = draw_dataset(tmp_path, "corner")
    tested = [record for record in data.records if record.split == "test"]
    folds = {record.image_id: f"fold-{n // 2 % 3}" for n, record in enumerate(tested)}
    shown: list[int] = []
    for kind in ("lungs", "corner"):
        models = {f"fold-{n}": reading(kind) for n in range(3)}
        for number, model in enumerate(models.values()):
            model.network.register_forward_hook(partial(shift, shown, 2.0 * number))
        found = ablation(models, data, folds=folds, resamples=100, progress=False)
        single = ablation(reading(kind), data, resamples=100, progress=False).overall
        assert found.images == found.patients == len(tested)
        assert found.models == found.to_dict()["models"] == 3
        for view in VIEWS:
            assert found.overall[view].value == pytest.approx(single[view].value, abs=0.05), view
        assert (found.overall["lungs_lead"].low > 0) == (kind == "lungs")
        assert (found.overall["lungs_lead"].high < 0) == (kind == "corner")
        assert "one of 3 models that was tested on it" in sections_of(found)[0].lead
    assert sum(shown) == 2 * 4 * len(tested)  # the prediction, and the three views
    with pytest.raises(ConfigError, match="no model of fold-2"):
        ablation({name: reading("lungs") for name in ("fold-0", "fold-1")}, data, folds=folds, progress=False)
    with pytest.raises(ConfigError, match="no model of all images"):
        ablation({"fold-0": reading("lungs")}, data, progress=False)
    alone = {record.image_id: f"fold-{CLASSES.index(str(record.label))}" for record in tested}
    with pytest.raises(ConfigError, match="of a fold are all of one class"):
        ablation(models, data, folds=alone, max_images=10, progress=False)


def shift(shown: list[int], by: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    shown.append(len(output))
    return output * 0.5 + by


def test_a_run_in_folds_gets_the_ablation(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path / "data", "corner")
    tested = [record for record in data.records if record.split == "test"]
    settings = PreprocessConfig(image_size=(64, 64), mean=(0.0,), std=(1.0,))
    arguments = {"cell": 8, "side": 32, "thumbnail": 4}
    config = ModelConfig("classification", "hog", CLASSES, "binary", arguments, settings, positive="covid19")
    rows: list[dict[str, Any]] = []
    for number in range(3):
        folder = tmp_path / "run" / f"fold-{number}"
        ClassificationModel(config).save_pretrained(folder / "model")
        own = []
        for record in (record for n, record in enumerate(tested) if n // 2 % 3 == number):
            ill = 0.3 + 0.4 * (record.label == "covid19")
            row = {"image_id": record.image_id, "patient_id": record.patient_id, "fold": folder.name}
            own.append(row | {"label": record.label, "probability_covid19": ill, "probability_normal": 1 - ill})
        write_rows(own, folder / "predictions.csv")
        rows += own
    write_rows(rows, tmp_path / "run" / "predictions.csv")
    words = ["evaluate", str(tmp_path / "run"), "--data", "csv", "--data.root", str(tmp_path / "data"), "--no-gallery"]
    words += ["--data.mask_columns", "{lung: lung}", "--no-copies", "--resamples", "50", "--max-images", "24"]
    assert main([*words, "--out", str(tmp_path / "report")]) == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["ablation"]
    assert found["models"] == 3
    assert found["images"] == found["patients"] == 24
