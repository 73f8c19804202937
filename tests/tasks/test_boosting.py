"""Boosted trees on deep features: the scores of scikit-learn, without scikit-learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.ensemble import GradientBoostingClassifier
from torch import nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, DatasetError, PretrainedError
from covidcxr.models import ClassificationModel, load_model
from covidcxr.networks.shallow import BoostedTrees
from covidcxr.phantom import write_dataset
from covidcxr.registry import CLASSIFICATION_NETWORKS
from covidcxr.tasks import ClassificationTask, fit_boosting, predict_rows

BACKBONE = "timm:mobilenetv3_small_050"
CLASSES = ("covid19", "normal", "pneumonia")


def trees(outputs: int, stages: int = 12, depth: int = 3, **settings: Any) -> BoostedTrees:
    return BoostedTrees(1, outputs, image_size=(32, 32), backbone=BACKBONE, stages=stages, depth=depth, **settings)


def boosted(classes: tuple[str, ...] = CLASSES, mode: Any = "multiclass", **args: Any) -> ClassificationModel:
    torch.manual_seed(0)
    args = {"backbone": BACKBONE, "stages": 8, "depth": 2, **args}
    settings = PreprocessConfig(image_size=(64, 64))
    return ClassificationModel(ModelConfig("classification", "boosted", classes, mode, args, settings))


def features_and_labels(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features on a coarse grid, so that many images tie, with labels that follow them but for noise."""
    rng = np.random.default_rng(seed)
    features = (rng.integers(-3, 4, (240, 9)) / 3).astype(np.float32)
    noise = rng.integers(0, 2, 240)
    return features, ((features[:, 0] + features[:, 1] > 0) + (features[:, 2] > 0) * 2 + noise) % classes


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), 30, seed=5, size=(64, 64)).parent


def data(folder: Path, **settings: Any) -> CSVDataModule:
    return CSVDataModule(folder, **{"image_size": (32, 32), "batch_size": 7, **settings})


# --- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "outputs", "settings"),
    [
        (2, 1, {}),
        (2, 2, {}),
        (3, 3, {"subsample": 0.5, "max_features": "sqrt"}),
        (4, 4, {"learning_rate": 0.7}),
        (4, 4, {"max_depth": 1}),
        (3, 3, {"n_iter_no_change": 2, "tol": 0.05}),
    ],
)
def test_scores_are_those_of_scikit_learn(classes: int, outputs: int, settings: dict[str, Any]) -> None:
    features, labels = features_and_labels(classes)
    reference = GradientBoostingClassifier(**{"n_estimators": 12, "random_state": 0, **settings}).fit(features, labels)
    assert (reference.n_estimators_ < 12) is ("n_iter_no_change" in settings)
    network = trees(outputs)
    network.copy_trees(GradientBoostingClassifier(n_estimators=12).fit(features, labels[::-1]))  # is overwritten
    network.copy_trees(reference)
    cuts = {float(t) for tree in reference.estimators_.flat for t in tree.tree_.threshold if t != -2}
    assert cuts
    ties = [np.full((1, 9), near, np.float32) for cut in cuts for near in neighbours(cut)]
    other = np.random.default_rng(1).normal(0, 2, (50, 9)).astype(np.float32)
    for images in (features, other, np.concatenate(ties)):
        with torch.no_grad():
            scores = network.score(torch.from_numpy(images)).double().numpy()
        wanted = reference.decision_function(images).reshape(len(images), -1)
        np.testing.assert_allclose(scores[:, -wanted.shape[1] :], wanted, atol=1e-6, rtol=0)
        columns = np.concatenate((-scores, scores), 1) / 2 if outputs == 1 else scores
        probabilities = np.exp(columns) / np.exp(columns).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities, reference.predict_proba(images), atol=1e-6, rtol=0)


def neighbours(cut: float) -> tuple[np.float32, ...]:
    """The float32 values at a threshold, just below and just above."""
    near = np.float32(cut)
    return near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))


@pytest.mark.parametrize("low", [np.float32(5.1), np.nextafter(np.float32(5.1), np.float32(6))])  # rounds up, down
def test_thresholds_between_two_float32_part_them_as_scikit_learn_does(low: np.float32) -> None:
    high = np.nextafter(low, np.float32(6))
    features = np.array([[low], [high]] * 20, np.float32)
    reference = GradientBoostingClassifier(n_estimators=3, max_depth=1).fit(features, [0, 1] * 20)
    assert low < reference.estimators_[0, 0].tree_.threshold[0] < high
    network = trees(1)
    network.copy_trees(reference)
    scores = network.score(torch.from_numpy(features[:2]))[:, 0]
    np.testing.assert_allclose(scores.numpy(), reference.decision_function(features[:2]), atol=1e-6)
    assert scores[0] < scores[1]


def test_trees_that_learnt_nothing_answer_alike() -> None:
    features = np.ones((30, 4), np.float32)
    reference = GradientBoostingClassifier(n_estimators=3).fit(features, [0] * 20 + [1] * 10)
    network = trees(1)
    network.copy_trees(reference)
    assert network.score(torch.zeros(1, 4)).item() == pytest.approx(np.log(10 / 20), abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    features, labels = features_and_labels(3)
    for outputs, changes in ((3, {"n_estimators": 13}), (3, {"max_depth": 4}), (4, {}), (1, {})):
        reference = GradientBoostingClassifier(**{"n_estimators": 5, **changes}).fit(features, labels)
        network = trees(outputs)
        with pytest.raises(ConfigError, match=r"3 classes do not fit into 12 stages, 3 deep, with [134] output"):
            network.copy_trees(reference)
        assert not network.leaf.any()


# --- the network -----------------------------------------------------------------------------------------------------


def test_features_are_what_the_backbones_last_layer_sees() -> None:
    torch.manual_seed(3)
    network = trees(2)
    torch.manual_seed(3)
    whole = timm.create_model(BACKBONE.removeprefix("timm:"), in_chans=1, num_classes=1).eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(image), pre_logits=True)
        torch.testing.assert_close(network.features(image), wanted)
    assert wanted.std() > 0


@pytest.mark.parametrize(("backbone", "count"), [("torchvision:squeezenet1_1", 512), ("covidcnn2021", 32)])
def test_any_network_is_a_backbone(backbone: str, count: int) -> None:
    network = BoostedTrees(1, 2, image_size=(64, 64), backbone=backbone, stages=2)
    assert network.features(torch.rand(2, 1, 64, 64)).shape == (2, count)
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 2)


def test_the_backbone_is_frozen_in_training_mode_too() -> None:
    network = trees(1).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.rand(4, 1, 32, 32))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_backbone_may_come_from_a_trained_classifier(tmp_path: Path) -> None:
    settings = PreprocessConfig(image_size=(64, 64))
    trained = ClassificationModel(ModelConfig("classification", BACKBONE, CLASSES, preprocess=settings)).eval()
    trained.save_pretrained(tmp_path)
    network = boosted().network
    started = ClassificationModel(boosted().config, pretrained_backbone=tmp_path).network
    assert torch.equal(started.backbone.conv_stem.weight, trained.network.conv_stem.weight)
    assert not torch.equal(started.backbone.conv_stem.weight, network.backbone.conv_stem.weight)
    with pytest.raises(PretrainedError, match="could not be had"):
        ClassificationModel(boosted().config, pretrained_backbone=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"stages": 0}, "stages of boosted trees must be a whole number"),
        ({"depth": 11}, r"depth of boosted trees must be a whole number from 1 to 10, not 11"),
        ({"depth": 2.0}, "depth"),
        ({"backbone": "timm:mobilenetv3_smal_050"}, "mobilenetv3_small_050"),
        ({"stagez": 3}, "Did you mean 'stages'"),
        ({"pretrained": True}, "may not hold 'pretrained'"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        boosted(**args)


def test_a_network_must_say_what_its_backbone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    CLASSIFICATION_NETWORKS.names()
    CLASSIFICATION_NETWORKS.load()
    monkeypatch.setattr(CLASSIFICATION_NETWORKS, "_entries", dict(CLASSIFICATION_NETWORKS._entries))
    CLASSIFICATION_NETWORKS.register("plain")(lambda in_channels, num_classes: nn.Flatten())
    with pytest.raises(ConfigError, match="Flatten does not say what its backbone is"):
        boosted(backbone="plain")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(phantoms: Path) -> ClassificationModel:
    return fit_boosting(boosted(stages=20), data(phantoms), learning_rate=0.5, seed=1, progress=False)


def test_the_training_images_are_learnt(trained: ClassificationModel, phantoms: Path) -> None:
    rows = predict_rows(trained, data(phantoms), "train", progress=False)
    answers = [max(CLASSES, key=lambda name: row[f"probability_{name}"]) for row in rows]
    assert len(rows) == len(data(phantoms).train_dataset)
    assert np.mean([row["label"] == answer for row, answer in zip(rows, answers, strict=True)]) > 0.9


def test_same_seed_same_bits(trained: ClassificationModel, phantoms: Path) -> None:
    half = {"learning_rate": 0.5, "subsample": 0.5, "max_features": 0.2, "progress": False}
    plain = data(phantoms, augment=None, balance="class", seed=9)  # no matter for trees
    again = fit_boosting(boosted(stages=20), plain, learning_rate=0.5, seed=1, progress=False)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    first, second, third = (fit_boosting(boosted(), data(phantoms), seed=seed, **half).network for seed in (2, 2, 3))
    assert torch.equal(first.leaf, second.leaf)
    assert torch.equal(first.threshold, second.threshold)
    assert not torch.equal(first.leaf, third.leaf)


def test_a_saved_model_answers_alike_without_scikit_learn(
    trained: ClassificationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save_pretrained(tmp_path)
    assert "leaf" in load_file(tmp_path / "model.safetensors")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    image = torch.rand(3, 1, 80, 70)
    again = load_model(tmp_path)
    assert isinstance(again, ClassificationModel)
    assert torch.equal(again.predict(image), trained.predict(image))
    assert trained.predict(image).std() > 0


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_two_classes(mode: str, phantoms: Path) -> None:
    images = data(phantoms, label_map={"covid19": "ill", "pneumonia": "ill"})
    assert tuple(images.classes) == ("ill", "normal")
    model = fit_boosting(boosted(("ill", "normal"), mode), images, learning_rate=0.5, progress=False)
    rows = predict_rows(model, images, "train", progress=False)
    assert np.mean([(row["probability_ill"] > 0.5) == (row["label"] == "ill") for row in rows]) > 0.9


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.0}, {"subsample": 1.5}, {"max_features": 0}, {"learning_rate": float("nan")}]
)
def test_settings_out_of_range(settings: dict[str, float], phantoms: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        fit_boosting(boosted(), data(phantoms), **settings)  # type: ignore[arg-type]


def test_what_cannot_be_boosted(phantoms: Path) -> None:
    images = data(phantoms)
    other = ClassificationModel(ModelConfig("classification", BACKBONE, CLASSES))
    for model in (other, boosted(mode="multilabel")):
        with pytest.raises(ConfigError, match='trains the network "boosted" with exclusive classes'):
            fit_boosting(model, images)
    with pytest.raises(ConfigError, match="in the same order"):
        fit_boosting(boosted(CLASSES[::-1]), images)
    with pytest.raises(ConfigError, match=r"covidcxr\.tasks\.fit_boosting grows boosted trees"):
        ClassificationTask(boosted().config)


def test_every_class_needs_training_images(phantoms: Path) -> None:
    images = data(phantoms, label_map={"pneumonia": None})
    images.classes = CLASSES
    with pytest.raises(DatasetError, match=r"has of covid19, normal, pneumonia: \d+, \d+, 0"):
        fit_boosting(boosted(), images, progress=False)
