"""Perturbations do what their names say and nothing else, and expose a model that relies on a shortcut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from covidcxr import ClassificationModel, CSVDataModule, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.data import Record
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.evaluation.predictions.sample import ImageSample
from covidcxr.evaluation.stress.attention import attention, map_faithfulness
from covidcxr.evaluation.stress.perturbations import PERTURBATIONS, Perturbation, find_perturbations
from covidcxr.evaluation.stress.robustness import Robustness, robustness
from covidcxr.io.image import write_image, write_mask
from covidcxr.page import sections_of
from covidcxr.phantom import draw_phantom, write_dataset

CLASSES = ("normal", "covid19")
EVERY = find_perturbations()
IDENTITY = Perturbation("nothing", "", lambda image, rng: image)


class Reader(nn.Module):
    """Predicts by the brightness of one part of the image: an upper corner, or the middle."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.place = rows, columns
        self.backbone = nn.Sequential(nn.Conv2d(1, 1, 4, stride=4))
        nn.init.constant_(self.backbone[0].weight, 1 / 16)
        nn.init.zeros_(self.backbone[0].bias)
        self.window = Window(rows, columns)

    def forward(self, image: Tensor) -> Tensor:
        return 8 * self.window(self.backbone(image)).sum((2, 3)) / self.window.count


class Window(nn.Module):
    """Passes one part of the image."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., rows, columns] = 1
        self.register_buffer("mask", mask)
        self.count = float(mask.sum())

    def forward(self, image: Tensor) -> Tensor:
        return (image + 2) * self.mask - 2 * self.mask


def reader(rows: slice, columns: slice) -> ClassificationModel:
    preprocess = PreprocessConfig(image_size=(64, 64), fit="stretch")
    model = ClassificationModel(ModelConfig("classification", "cnn19", CLASSES, "binary", preprocess=preprocess))
    model.network = Reader(rows, columns)
    return model.eval()


def corner_reader() -> ClassificationModel:
    return reader(slice(0, 2), slice(0, 2))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Images of 12 patients; the upper left corner is a little brighter where the label is covid19."""
    folder = tmp_path_factory.mktemp("images")
    records = []
    for number in range(24):
        label = CLASSES[number // 2 % 2]
        image = draw_phantom(number // 2, size=(96, 96), marker=False).image
        image[:18, :18] = 0.52 if label == "covid19" else 0.48
        write_image(folder / f"{number:02d}.png", image)
        patient, source = f"p{number // 2}", f"hospital-{number % 2}"
        records.append(Record(folder / f"{number:02d}.png", label=label, patient_id=patient, source=source))
    return records


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


# --- perturbations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", EVERY, ids=lambda change: change.title)
def test_every_perturbation_returns_an_image(change: Perturbation) -> None:
    image = draw_phantom(1, size=(300, 260)).image
    before = image.copy()
    changed = change(image, image_id="a", seed=1)
    assert (changed.dtype, changed.ndim) == ("float32", 2)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not np.array_equal(changed, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(changed, change(image, image_id="a", seed=1))
    random = not np.array_equal(changed, change(image, image_id="b", seed=1))
    assert random == (change.name == "noise")
    assert random == (not np.array_equal(changed, change(image, image_id="a", seed=2)))


def test_they_do_what_they_say() -> None:
    image = draw_phantom(1, size=(300, 260)).image
    by_title = {change.title: change for change in EVERY}
    np.testing.assert_allclose(by_title["inversion"](image), 1 - image, atol=1e-6)
    np.testing.assert_array_equal(by_title["mirror image"](image), image[:, ::-1])
    assert by_title["crop, 5%"](image).shape == (270, 234)
    frame = by_title["frame, 3% white"](image)
    assert frame[:9].min() == frame[:, -9:].min() == 1
    np.testing.assert_array_equal(frame[9:-9, 9:-9], image[9:-9, 9:-9])
    left, right = by_title["letter, R"](image) - image, by_title["letter, L"](image) - image
    assert left[:, 130:].max() == right[:, :130].max() == left[60:].max() == 0
    assert left.max() > 0.5
    assert float((by_title["noise, 5%"](image * 0 + 0.5) - 0.5).std()) == pytest.approx(0.05, rel=0.02)
    turned = by_title["rotation, +10 degrees"](image)
    dot = np.zeros((101, 101), np.float32)
    dot[49:52, 88:91] = 1
    row, column = np.unravel_index(by_title["rotation, +10 degrees"](dot).argmax(), dot.shape)
    assert (abs(row - (50 - 39 * math.sin(math.radians(10)))) < 2, abs(column - (50 + 39 * 0.985)) < 2) == (True, True)
    assert turned.shape == image.shape
    errors = [np.abs(by_title[f"JPEG, quality {quality}"](image) - image).mean() for quality in (75, 40, 20)]
    assert errors == sorted(errors)
    small = by_title["fewer pixels, 128 along the side"]
    np.testing.assert_array_equal(small(image[:100, :100]), image[:100, :100])
    mask = np.zeros((101, 101), bool)
    mask[40:60, 80:95] = True
    assert by_title["mirror image"].move(mask)[50, 10]
    assert by_title["blur, 0.5% of the side"].move(mask) is mask


def test_perturbations_are_found_by_name() -> None:
    assert set(PERTURBATIONS) == {change.name for change in EVERY}
    assert find_perturbations(["blur", IDENTITY])[-1] is IDENTITY
    with pytest.raises(UnknownNameError, match="Did you mean 'rotation'"):
        find_perturbations(["rotations"])
    with pytest.raises(ConfigError, match="name and strength of its own"):
        find_perturbations([IDENTITY, IDENTITY])
    with pytest.raises(ConfigError, match="gave no image"):
        Perturbation("odd", "", lambda image, rng: image[0])(np.zeros((8, 8), np.float32))


# --- robustness ----------------------------------------------------------------------------------------------------


def test_nothing_changes_nothing_exactly(images: list[Record], mini: Pipeline) -> None:
    for model in (corner_reader(), mini):
        result = robustness(model, images[:8], perturbations=[IDENTITY], resamples=50, progress=False)
        for name, estimate in result.effects[0].scores.items():
            value = float(name.startswith("dice"))
            assert estimate.value == value, name
            # Eight unchanged predictions do not show that no prediction and no mask ever changes.
            if name.endswith("_change"):
                assert -0.55 < estimate.low <= 0 <= estimate.high < 0.55, name  # four patients: 1 - 0.05 ** (1 / 4)
                continue
            assert estimate.low < value if name.startswith("dice") else estimate.low == value, name
            assert estimate.high > value if name in ("changed", "unanswered") else estimate.high == value, name


def test_a_letter_exposes_a_model_that_reads_the_corner(images: list[Record]) -> None:
    kinds = ["letter", "frame", "JPEG", "inversion"]
    exposed = robustness(corner_reader(), images, perturbations=kinds, resamples=200, progress=False)
    scores = {effect.title: effect.scores for effect in exposed.effects}
    assert exposed.clean["accuracy"].value == 1
    assert exposed.clean["macro_auroc"].value == 1
    assert scores["letter, R"]["changed"].value == 0.5  # every image of the darker class
    assert scores["letter, R"]["accuracy_change"].value == -0.5
    assert "letter, R (50%" in exposed.summary
    assert scores["letter, L"]["changed"].value == scores["JPEG, quality 75"]["changed"].value == 0
    assert scores["inversion"]["changed"].value == 1
    assert scores["inversion"]["accuracy_change"].value == -1
    assert scores["inversion"]["macro_auroc_change"].value == -1
    assert exposed.ranked()[0].title == "inversion"
    middle = robustness(
        reader(slice(7, 9), slice(7, 9)), images, perturbations=["letter"], resamples=50, progress=False
    )
    assert all(effect.scores["shift"].value == 0 for effect in middle.effects)


def test_the_figures_are_those_counted_by_hand(images: list[Record]) -> None:
    model = corner_reader()
    half = Perturbation("half", "", lambda image, rng: image * 0.45)
    result = robustness(model, images, perturbations=[half], resamples=50, progress=False).effects[0].scores
    sample = [image for batch in ImageSample(images).batches(5) for _, image in batch]
    probabilities = [
        model.predict(torch.from_numpy(np.stack(stack))[:, None]).numpy()
        for stack in (sample, [f * 0.45 for f in sample])
    ]
    decisions = [values.argmax(1) for values in probabilities]
    truth = np.array([CLASSES.index(str(record.label)) for record in images])
    assert result["changed"].value == pytest.approx(np.mean(decisions[0] != decisions[1]))
    assert result["shift"].value == pytest.approx(np.abs(probabilities[1] - probabilities[0]).max(1).mean(), abs=1e-6)
    assert result["accuracy_change"].value == pytest.approx(
        np.mean(decisions[1] == truth) - np.mean(decisions[0] == truth)
    )
    assert result["changed"].value > 0
    assert (result["changed"].count, result["changed"].patients) == (24, 12)


def test_images_without_labels_or_that_cannot_be_read(images: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    paths = [record.image_path for record in images[:4]]
    result = robustness(corner_reader(), [*paths, tmp_path / "broken.png"], perturbations=["blur"], progress=False)
    assert (result.images, result.patients) == (4, 4)
    assert "broken.png" in result.failed[str(tmp_path / "broken.png")]
    assert set(result.effects[0].scores) == {"changed", "unanswered", "shift"}
    assert result.clean == {}
    with pytest.raises(ConfigError, match="None of 1 images can be read"):
        robustness(corner_reader(), [tmp_path / "broken.png"], progress=False)


def test_a_pipeline_draws_the_lungs_on_the_changed_image(images: list[Record], mini: Pipeline) -> None:
    gone = Perturbation("black", "", lambda image, rng: image * 0)
    result = robustness(mini, images[:4], perturbations=["mirror image", gone], resamples=50, progress=False)
    mirror, black = (effect.scores for effect in result.effects)
    assert mirror["dice_lung_field"].value > 0.9  # the mask is mirrored before it is compared
    assert black["unanswered"].value == 1
    assert "changed" not in black
    lungs = robustness(
        mini.lung_segmenter, images[:4], perturbations=["mirror image", "blur"], resamples=50, progress=False
    )
    assert "changed" not in lungs.effects[0].scores
    assert lungs.summary.startswith("The masks are changed most by mirror image")
    assert mini.classifier is not None
    with pytest.raises(ConfigError, match="needs a lung_segmenter"):
        robustness(mini.classifier, images[:4], progress=False)


def test_findings_that_are_not_exclusive(images: list[Record]) -> None:
    preprocess = PreprocessConfig(image_size=(64, 64))
    torch.manual_seed(0)
    config = ModelConfig(
        "classification", "timm:mobilenetv3_small_050", ("a", "b"), "multilabel", preprocess=preprocess
    )
    records = [
        Record(record.image_path, patient_id=record.patient_id, findings={"a": n % 3 == 0})
        for n, record in enumerate(images)
    ]
    result = robustness(ClassificationModel(config), records, perturbations=["inversion"], resamples=50, progress=False)
    assert set(result.effects[0].scores) == {"changed", "unanswered", "shift", "macro_auroc_change"}
    assert set(result.clean) == {"macro_auroc"}


def test_the_model_trains_on_as_before(images: list[Record]) -> None:
    model = corner_reader().train()
    robustness(model, images[:2], perturbations=["blur"], resamples=10, progress=False)
    assert all(module.training for module in model.modules())


def test_the_same_seed_gives_the_same_bits(images: list[Record]) -> None:
    settings: dict[str, Any] = {"perturbations": ["noise"], "max_films": 8, "resamples": 50, "progress": False}
    first, again, other = (robustness(corner_reader(), images, seed=seed, **settings) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.to_dict() != other.to_dict()
    assert json.loads(json.dumps(first.to_dict()))["films"] == 8


def test_the_section_of_a_report(images: list[Record]) -> None:
    result = robustness(
        corner_reader(), images[:8], perturbations=["letter", "inversion"], resamples=50, progress=False
    )
    (section,) = sections_of(result)
    assert "inversion (100% [47%, 100%])" in section.lead  # of 8 images of 4 patients: 0.47 ** 4 is 5 %
    for scores in (effect.scores for effect in result.effects):  # a difference of two shares, never of no doubt
        for change in (scores["accuracy_change"], scores["macro_auroc_change"]):
            assert -1 <= change.low < change.high <= 1
    kinds = [type(block).__name__ for block in section.blocks]
    assert kinds == ["Picture", "Table"]
    assert isinstance(sections_of(Robustness(0, 0, {}, ())), list)


def test_a_sample_takes_every_patient_before_it_takes_one_twice(images: list[Record]) -> None:
    drawn = ImageSample(images, max_images=12, seed=3).records
    assert len({record.patient for record in drawn}) == 12
    assert [record.image_id for record in drawn] == sorted(record.image_id for record in drawn)  # in their order
    shuffled = ImageSample(images[::-1], max_images=12, seed=3).records
    assert {record.image_id for record in shuffled} == {record.image_id for record in drawn}
    assert len({record.patient for record in ImageSample(images, max_images=15).records}) == 12
    with pytest.raises(ConfigError, match="There is no image"):
        ImageSample([])
    with pytest.raises(ConfigError, match="not one path"):
        ImageSample("image.png")  # type: ignore[arg-type]


# --- where the model looks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_lungs(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("lungs")
    lungs = np.zeros((64, 64), bool)
    lungs[24:40, 24:40] = True
    records = []
    for number in range(8):
        image = np.random.default_rng(number).uniform(0.7, 0.8, (64, 64)).astype(np.float32)
        write_image(folder / f"{number}.png", image)
        write_mask(folder / f"{number}.lung.png", lungs)
        record = Record(
            folder / f"{number}.png",
            label=CLASSES[number % 2],
            patient_id=f"p{number}",
            source=f"s{number % 2}",
            mask_paths={"lung": folder / f"{number}.lung.png"},
        )
        records.append(record)
    return records


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients", "occlusion"])
def test_heat_in_the_lungs_differs_from_heat_elsewhere(with_lungs: list[Record], method: str) -> None:
    inside, outside = reader(slice(7, 9), slice(7, 9)), reader(slice(0, 3), slice(0, 3))
    settings: dict[str, Any] = {"method": method, "target": "covid19", "resamples": 50, "progress": False}
    good, bad = (attention(model, with_lungs, **settings) for model in (inside, outside))
    assert good.overall["share"].value > 0.9
    assert bad.overall["share"].value < 0.05
    assert good.overall["chance"].value == pytest.approx((20 / 64) ** 2)  # widened by 2 pixels
    difference = good.overall["difference"]
    assert difference.value == pytest.approx(good.overall["share"].value - good.overall["chance"].value)
    assert set(good.by_class) == set(CLASSES)
    assert good.by_source["s1"]["share"].count == 4
    assert good.region == "full"


def test_attention_counts_what_it_leaves_out(with_lungs: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    dark = tmp_path / "dark.png"
    write_image(dark, np.zeros((64, 64), np.float32))
    records = [*with_lungs[:3], Record(tmp_path / "broken.png"), Record(dark)]
    result = attention(reader(slice(7, 9), slice(7, 9)), records, target="covid19", resamples=50, progress=False)
    assert result.overall["share"].count == 3
    assert len(result.rows) == 4
    assert math.isnan(result.rows[-1].share)
    assert list(result.failed) == [(tmp_path / "broken.png").as_posix()]
    assert len(result.least) == 3
    (section,) = sections_of(result)
    assert "could not be read" in str([block for block in section.blocks if type(block).__name__ == "Words"])
    assert json.loads(json.dumps(result.to_dict()))["rows"][-1]["share"] is None


def test_a_model_of_the_lungs_alone_looks_only_there(mini: Pipeline, images: list[Record]) -> None:
    torch.manual_seed(0)
    preprocess = PreprocessConfig(image_size=(96, 96), region="lungs")
    config = ModelConfig("classification", "timm:mobilenetv3_small_050", CLASSES, preprocess=preprocess)
    blind = Pipeline(lung_segmenter=mini.lung_segmenter, classifier=ClassificationModel(config))
    result = attention(blind, images[:4], resamples=50, progress=False)
    assert result.overall["share"].value > 0.98
    assert "not an achievement" in result.summary
    only_lungs = Pipeline(lung_segmenter=mini.lung_segmenter)
    with pytest.raises(ConfigError, match="no classifier to explain"):
        attention(only_lungs, images[:4], progress=False)


# --- faithfulness over images ---------------------------------------------------------------------------------------


def test_true_maps_gain_over_random_ones(tmp_path: Path) -> None:
    model = reader(slice(7, 9), slice(7, 9))
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        image = np.random.default_rng(number).uniform(0.2, 0.4, (64, 64)).astype(np.float32)
        image[28:36, 28:36] = 0.9
        write_image(path, image)
    result = map_faithfulness(model, paths, target="covid19", resamples=100, progress=False)
    assert result.scores["deletion_gain"].low > 0
    assert result.scores["deletion_gain"].value == pytest.approx(
        result.scores["random_deletion"].value - result.scores["deletion"].value
    )
    assert result.count == 8
    assert len(result.fractions) == 21
    (section,) = sections_of(result)
    assert type(section.blocks[0]).__name__ == "Picture"
    assert json.loads(json.dumps(result.to_dict()))["curves"]["deletion"][0] == pytest.approx(
        result.curves["deletion"][0]
    )


def test_faithfulness_of_a_pipeline_of_the_lungs(mini: Pipeline, images: list[Record]) -> None:
    result = map_faithfulness(mini, images, max_images=2, steps=4, resamples=20, progress=False)
    again = map_faithfulness(mini, images, max_images=2, steps=4, resamples=20, progress=False)
    assert result.to_dict() == again.to_dict()
    assert all(0 <= result.scores[name].value <= 1 for name in ("deletion", "insertion"))


def test_on_a_data_module(tmp_path: Path, mini: Pipeline) -> None:
    write_dataset(tmp_path, 12, size=(96, 96))
    data = CSVDataModule(tmp_path, mask_columns={"lung": "lung"})
    count = sum(record.split == "test" for record in data.records)
    result = robustness(mini, data, perturbations=["blur"], resamples=20, progress=False)
    assert result.images == count
    assert isinstance(mini.lung_segmenter, SegmentationModel)
    assert len(attention(mini, data, split="val", resamples=20, progress=False).rows) > 0
