"""Ensembles: several classifiers answer as one, in a pipeline, on a data module, and after they were saved."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from covidcxr import EnsembleModel
from covidcxr.config import FORMAT_VERSION, ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, DatasetError, PretrainedError
from covidcxr.evaluation import calibrate, score_rows
from covidcxr.models import ClassificationModel, SegmentationModel, load_model
from covidcxr.phantom import write_dataset
from covidcxr.pipeline.parts import check_golden
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.tasks import ClassificationTask, SegmentationTask, predict_rows

CLASSES = ("covid19", "normal", "pneumonia")
NETWORK = "timm:mobilenetv3_small_050"
MASKS = ("lung_field", "lung")


def classifier(seed: int, classes: tuple[str, ...] = CLASSES, **settings: Any) -> ClassificationModel:
    """A classifier that is not sure of the same answer for every image."""
    torch.manual_seed(seed)
    own = {name: settings.pop(name) for name in ("mode", "temperature", "thresholds", "network") if name in settings}
    preprocess = PreprocessConfig(**{"image_size": (32, 32), **settings})
    config = {"network": NETWORK, "temperature": 0.002, "preprocess": preprocess, **own}
    return ClassificationModel(ModelConfig(task="classification", classes=classes, **config)).eval()


def different(**settings: Any) -> dict[str, ClassificationModel]:
    """Members of other sizes, regions, channels and fits."""
    return {
        "whole": classifier(0, **settings),
        "lungs": classifier(1, image_size=(48, 40), region="lungs", lung_dilation=0.05, fit="stretch", **settings),
        "colour": classifier(2, image_size=(40, 40), channels=3, mean=(0.4,), **settings),
    }


def segmenter() -> SegmentationModel:
    torch.manual_seed(0)
    args = {"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    settings = PreprocessConfig(image_size=(64, 64))
    return SegmentationModel(ModelConfig("segmentation", "smp:fpn", MASKS, "multilabel", args, settings))


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def answers_of(members: Mapping[str, ClassificationModel], *batch: torch.Tensor) -> torch.Tensor:
    return torch.stack([member.predict(*batch) for member in members.values()])


@pytest.fixture(scope="module")
def lungs() -> torch.Tensor:
    mask = torch.zeros(5, 1, 70, 60)
    mask[..., 20:50, 10:50] = 1
    return mask


@pytest.fixture(scope="module")
def members() -> dict[str, ClassificationModel]:
    return different()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), 36, seed=4, size=(80, 64)).parent


def data(folder: Path, member: ClassificationModel | None = None, **settings: Any) -> CSVDataModule:
    names = ("image_size", "fit", "region", "lung_dilation") if member is not None else ()
    geometry = {name: getattr(member.config.preprocess, name) for name in names} if member is not None else {}
    masks = {name: name for name in MASKS}
    return CSVDataModule(folder, **{"batch_size": 4, "mask_columns": masks, **geometry, **settings})


# --- votes -----------------------------------------------------------------------------------------------------------


def test_soft_votes_are_means_of_calibrated_probabilities(
    members: dict[str, ClassificationModel], lungs: torch.Tensor
) -> None:
    image = images(5, 1, 70, 60)
    ensemble = EnsembleModel(members)
    alone = answers_of(members, image, lungs)
    assert alone.std(0).mean() > 0.1, "the members must differ"
    torch.testing.assert_close(ensemble.predict(image, lungs), alone.mean(0))
    torch.testing.assert_close(ensemble.combine(list(alone)), ensemble.predict(image, lungs))
    weighted = EnsembleModel(members, weights={"colour": 3, "whole": 1.5, "lungs": 0.5})
    torch.testing.assert_close(weighted.predict(image, lungs), (1.5 * alone[0] + 0.5 * alone[1] + 3 * alone[2]) / 5)
    assert list(weighted.config.members) == ["whole", "lungs", "colour"]


def test_hard_votes_are_shares_of_answers(members: dict[str, ClassificationModel]) -> None:
    ensemble = EnsembleModel(members, vote="hard", weights={"whole": 1, "lungs": 1, "colour": 2})
    given = [torch.tensor([row]) for row in ([0.4, 0.35, 0.25], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3])]
    torch.testing.assert_close(ensemble.combine(given), torch.tensor([[0.25, 0.5, 0.25]]))
    agreed = ensemble.combine([torch.tensor([[0.5, 0.3, 0.2]])] * 3)
    torch.testing.assert_close(agreed, torch.tensor([[1.0, 0.0, 0.0]]))


def test_findings_are_voted_on_one_by_one() -> None:
    members = {name: classifier(seed, mode="multilabel") for seed, name in enumerate("ab")}
    members["a"].config = classifier(0, mode="multilabel", thresholds={"normal": 0.1}).config
    given = [torch.tensor([[0.6, 0.2, 0.9]]), torch.tensor([[0.4, 0.2, 0.8]])]
    torch.testing.assert_close(EnsembleModel(members).combine(given), torch.tensor([[0.5, 0.2, 0.85]]))
    hard = EnsembleModel(members, vote="hard")
    torch.testing.assert_close(hard.combine(given), torch.tensor([[0.5, 0.5, 1.0]]))
    uneven = EnsembleModel({**members, "c": members["b"]}, weights={"a": 0.1, "b": 0.1, "c": 1.1})
    sure = torch.tensor([[1.0, 0.0, 0.5]])  # this sum of weights rounds to a mean above 1
    torch.testing.assert_close(uneven.combine([sure] * 3), sure)
    image = images(2, 1, 40, 40)
    torch.testing.assert_close(EnsembleModel(members).predict(image), answers_of(members, image).mean(0))


def test_temperature_is_of_the_ensemble_itself(members: dict[str, ClassificationModel], lungs: torch.Tensor) -> None:
    image = images(5, 1, 70, 60)
    mean = answers_of(members, image, lungs).mean(0).double()
    warm = EnsembleModel(members, temperature=2.5)
    wanted = mean ** (1 / 2.5) / (mean ** (1 / 2.5)).sum(1, keepdim=True)
    torch.testing.assert_close(warm.predict(image, lungs).double(), wanted, atol=1e-6, rtol=1e-5)


def test_binary_and_two_class_members_go_together() -> None:
    members = {"one": classifier(0, ("normal", "ill"), mode="binary"), "two": classifier(1, ("normal", "ill"))}
    image = images(3, 1, 40, 40)
    torch.testing.assert_close(EnsembleModel(members).predict(image), answers_of(members, image).mean(0))


def test_answers_follow_the_ensembles_thresholds(members: dict[str, ClassificationModel]) -> None:
    chances = {"covid19": 0.5, "normal": 0.3, "pneumonia": 0.2}
    assert EnsembleModel(members).answer(chances) == ("covid19", ())
    careful = EnsembleModel(members, thresholds=dict.fromkeys(CLASSES, 0.25))
    assert careful.answer(chances) == (None, ("several-answers-plausible",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": {}}, "needs members by name"),
        ({"members": [classifier(0)]}, "needs members by name"),
        ({"members": {"a": segmenter()}}, "'a' must be a ClassificationModel, not a SegmentationModel"),
        ({"members": {"../a": classifier(0)}}, "name is letters, digits"),
        ({"members": {"a": classifier(0), "b": classifier(0, CLASSES[::-1])}}, "same order.*'a' has.*'b' has"),
        ({"members": {"a": classifier(0), "b": classifier(0, mode="multilabel")}}, "multiclass.*multilabel"),
        ({"weights": {"a": 1}}, "'b' is wrong"),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, "'c' is wrong"),
        ({"weights": {"a": 1, "b": 0}}, "weight of 'b' must be a number above 0"),
        ({"vote": "median"}, "vote must be one of soft, hard, not 'median'"),
        ({"thresholds": {"covid": 0.5}}, "Did you mean 'covid19'"),
        ({"temperature": 0}, "temperature must be a number above 0"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    given = {"members": {"a": classifier(0), "b": classifier(1)}, **changes}
    with pytest.raises(ConfigError, match=message):
        EnsembleModel(given.pop("members"), **given)


# --- saved -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, members: dict[str, ClassificationModel]) -> Path:
    ensemble = EnsembleModel(
        members, vote="hard", weights={"whole": 1, "lungs": 2, "colour": 1}, temperature=1.5, thresholds={"normal": 0.2}
    )
    return ensemble.save_pretrained(tmp_path / "ensemble")


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_ensemble_is_the_same(
    folder: Path, tmp_path: Path, members: dict[str, ClassificationModel], lungs: torch.Tensor
) -> None:
    image = images(5, 1, 70, 60)
    again = EnsembleModel.from_pretrained(folder)
    assert isinstance(load_model(folder), EnsembleModel)
    assert not again.training
    assert (again.config.vote, again.config.temperature, again.config.thresholds) == ("hard", 1.5, {"normal": 0.2})
    for (name, member), loaded in zip(members.items(), again.members, strict=True):
        assert torch.equal(loaded.predict(image, lungs), member.predict(image, lungs))
        assert ClassificationModel.from_pretrained(folder / "members" / name).config == member.config
    twice = again.save_pretrained(tmp_path / "twice")
    for path in folder.rglob("*.*"):
        assert (twice / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "members"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"voet": "soft"}, ConfigError, r"Unknown key 'voet' in .*config\.json\. Did you mean 'vote'\?"),
        ({"format_version": FORMAT_VERSION + 1, "new": 1}, PretrainedError, "pip install --upgrade covidcxr"),
        ({"members": {"../whole": 1}}, ConfigError, "name is letters, digits"),
        ({"members": {"gone": 1}}, PretrainedError, r"gone.config\.json is missing"),
        ({"members": {"whole": -1}}, ConfigError, "weight of 'whole'"),
        ({"members": ["whole"]}, ConfigError, "members must be a table"),
        ({"members": {}}, ConfigError, "An ensemble has members"),
        ({"classes": CLASSES[::-1]}, ConfigError, "members' classes .* are not those of"),
        ({"mode": "multilabel"}, ConfigError, "or mode are not those of"),
        ({"mode": "binary"}, ConfigError, "mode must be one of multiclass, multilabel, not 'binary'"),
        ({"thresholds": {"heart": 0.5}}, ConfigError, r"config\.json: thresholds names the class 'heart'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_altered_configs(changes: dict[str, Any], error: type[Exception], message: str, folder: Path) -> None:
    change(folder, **changes)
    with pytest.raises(error, match=message):
        EnsembleModel.from_pretrained(folder)


def test_altered_weights_of_a_member(folder: Path) -> None:
    path = folder / "members" / "lungs" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(PretrainedError, match="truncated or was altered"):
        EnsembleModel.from_pretrained(folder)


def test_another_kind_of_folder_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds an ensemble: load it with EnsembleModel\.from_pretrained"):
        ClassificationModel.from_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"whole holds no ensemble: load it with covidcxr\.models\.load_model"):
        EnsembleModel.from_pretrained(folder / "members" / "whole")
    with pytest.raises(ConfigError, match="start from one of its members"):
        ClassificationTask(classifier(0).config, init_from=folder)
    with pytest.raises(ConfigError, match="start from one of its members"):
        SegmentationTask(segmenter().config, loss="dice", init_from=folder)
    one = classifier(5)
    one.save_pretrained(folder)  # over the ensemble
    assert isinstance(load_model(folder), ClassificationModel)


# --- pipeline --------------------------------------------------------------------------------------------------------


def test_each_member_sees_in_a_pipeline_what_it_sees_alone(members: dict[str, ClassificationModel]) -> None:
    shown = [images(90 + 7 * n, 70, seed=n).numpy() for n in range(3)]
    draw = segmenter()
    together = Pipeline(lung_segmenter=draw, classifier=EnsembleModel(members), min_lung_area=0.0).predict(shown)
    alone = [Pipeline(lung_segmenter=draw, classifier=m, min_lung_area=0.0).predict(shown) for m in members.values()]
    for answer, *others in zip(together, *alone, strict=True):
        for name in CLASSES:
            mean = np.mean([other.probabilities[name] for other in others])
            assert answer.probabilities[name] == pytest.approx(mean, abs=1e-6)
    assert set(answer.masks) == set(MASKS)


def test_lungs_are_needed_where_a_member_needs_them(members: dict[str, ClassificationModel]) -> None:
    with pytest.raises(ConfigError, match="classifier sees only a region of the image: it needs a lung_segmenter"):
        Pipeline(classifier=EnsembleModel(members))
    blind = segmenter()
    with torch.no_grad():
        blind.network.segmentation_head[0].bias.fill_(-20.0)
    prediction = Pipeline(lung_segmenter=blind, classifier=EnsembleModel(members))(images(80, 70).numpy())
    assert prediction.probabilities == {}
    assert "lungs-not-found" in prediction.reasons
    whole = EnsembleModel({"a": classifier(0), "b": classifier(1)})
    assert not whole.needs_lungs
    assert set(Pipeline(classifier=whole)(images(80, 70).numpy()).probabilities) == set(CLASSES)


def test_a_saved_pipeline_with_an_ensemble_is_the_same(members: dict[str, ClassificationModel], tmp_path: Path) -> None:
    pipeline = Pipeline(lung_segmenter=segmenter(), classifier=EnsembleModel(members), min_lung_area=0.0)
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    assert isinstance(again.classifier, EnsembleModel)
    shown = images(100, 80).numpy()
    first, second = pipeline(shown), again(shown)
    assert (first.probabilities, first.label, first.reasons) == (second.probabilities, second.label, second.reasons)
    assert check_golden(again, tmp_path / "saved" / "golden") == []
    assert json.loads((tmp_path / "saved" / "golden" / "golden.json").read_text())["films"][0]["probabilities"]
    assert "ensemble of whole, lungs, colour" in (tmp_path / "saved" / "README.md").read_text()
    assert EnsembleModel.from_pretrained(tmp_path / "saved").config == again.classifier.config
    assert isinstance(load_model(tmp_path / "saved", prefer="segmentation"), SegmentationModel)
    shutil.rmtree(tmp_path / "saved" / "classifier" / "members" / "colour")
    with pytest.raises(PretrainedError, match=r"colour.config\.json is missing"):
        Pipeline.from_pretrained(tmp_path / "saved")


# --- data modules ----------------------------------------------------------------------------------------------------


def rows_of_a_test(model: ClassificationModel, images: CSVDataModule) -> list[dict[str, Any]]:
    """The rows of Lightning's own test."""
    task = ClassificationTask(model.config)
    task.model = model
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(task, images, verbose=False)
    return task.rows


def chances(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row[f"probability_{name}"] for name in CLASSES] for row in rows])


def test_rows_are_those_of_a_test(phantoms: Path, members: dict[str, ClassificationModel]) -> None:
    alone = [rows_of_a_test(member, data(phantoms, member)) for member in members.values()]
    ensemble = EnsembleModel(members)
    rows = predict_rows(ensemble, data(phantoms, image_size=(200, 100), num_workers=1), progress=False)
    known = [{key: value for key, value in row.items() if "probability" not in key} for row in rows]
    assert known == [{key: row[key] for key in ("image_id", "patient_id", "source", "label")} for row in alone[0]]
    # Outside of a Trainer batch norms are fused into convolutions, which rounds otherwise.
    np.testing.assert_allclose(chances(rows), np.mean([chances(one) for one in alone], axis=0), atol=1e-4)
    own = predict_rows(members["lungs"], data(phantoms), progress=False)
    np.testing.assert_allclose(chances(own), chances(alone[1]), atol=1e-4)
    assert score_rows(rows)["accuracy"].count == len(rows) > 0


def test_an_ensemble_is_calibrated_like_a_model(phantoms: Path, members: dict[str, ClassificationModel]) -> None:
    ensemble, images = EnsembleModel(members, temperature=0.7), data(phantoms)
    rows = predict_rows(ensemble, images, "val", progress=False)
    truth = np.array([CLASSES.index(row["label"]) for row in rows])
    ensemble.config = calibrate(ensemble.config, rows, coverage=0.8)
    warmer = chances(predict_rows(ensemble, images, "val", progress=False))
    assert ensemble.config.temperature != 0.7
    places = np.arange(len(truth))
    assert np.log(warmer[places, truth]).mean() > np.log(chances(rows)[places, truth]).mean()
    threshold = ensemble.config.thresholds["covid19"]
    assert ensemble.config.thresholds == dict.fromkeys(CLASSES, threshold)
    assert (warmer[places, truth] >= threshold - 1e-6).mean() >= 0.8


def test_rows_of_labelled_images_only(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path, dirs_exist_ok=True)
    header, *lines = (tmp_path / "manifest.csv").read_text().splitlines()
    lines[:12] = [re.sub("covid19|normal|pneumonia", "", line) for line in lines[:12]]
    (tmp_path / "manifest.csv").write_text("\n".join([header, *lines]))
    images, model = data(tmp_path), classifier(0)
    counts = {split: len(predict_rows(model, images, split, progress=False)) for split in ("train", "val", "test")}
    assert sum(counts.values()) == 24
    assert len(images.records) == 36
    findings = predict_rows(classifier(0, mode="multilabel"), images, progress=False)
    assert {row["label_normal"] for row in findings} == {0.0, 1.0}
    assert "label" not in findings[0]


def test_what_cannot_be_asked(phantoms: Path, members: dict[str, ClassificationModel]) -> None:
    with pytest.raises(ConfigError, match="There is no split 'tset'"):
        predict_rows(EnsembleModel(members), data(phantoms), "tset")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in the same order"):
        predict_rows(classifier(0, CLASSES[::-1]), data(phantoms))
    with pytest.raises(DatasetError, match='region="lungs" needs a lung mask'):
        predict_rows(EnsembleModel(members), data(phantoms, mask_columns={}))
