"""Explanations: the heat lies where the evidence is, at the image's own size, and the model is left as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from covidcxr import ClassificationModel, EnsembleModel, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel
from covidcxr.cli import main
from covidcxr.cli.predict import explain_images
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.explain import METHODS, explain, explain_many, faithfulness
from covidcxr.explain.methods import _named_layers, as_maps, log_odds, recorded
from covidcxr.io.image import read_image, write_image
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.folder import find_images
from covidcxr.pipeline.prediction import Prediction
from covidcxr.transforms.geometry import apply_region, dilate, letterbox_box, resize_image
from covidcxr.transforms.preprocess import Preprocess

CLASSES = ("normal", "covid19", "pneumonia")


class Spots(nn.Module):
    """Counts what is brighter than a grey of about 0.8: known evidence for the second class."""

    def __init__(self, channels: int = 1, outputs: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(channels, 2, 4, stride=4), nn.ReLU())
        self.head = nn.Linear(2, outputs)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.backbone[0].weight[0] = 1 / (16 * channels)
            self.backbone[0].bias[0] = -1.2
            self.backbone[0].bias[1] = 0.5  # a feature that is the same everywhere, and speaks for another class
            self.head.weight[min(1, outputs - 1), 0] = 50
            if outputs > 1:
                self.head.weight[2, 1] = 0.3

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image).mean((2, 3)))


def spots(mode: str = "multiclass", classes: Sequence[str] = CLASSES, **preprocess: Any) -> ClassificationModel:
    settings = PreprocessConfig(**{"image_size": (64, 64), **preprocess})
    model = ClassificationModel(ModelConfig("classification", "cnn19", classes, mode, preprocess=settings))
    model.network = Spots(settings.channels, model.config.outputs)
    return model.eval()


def image_with_spot(height: int, width: int, place: tuple[slice, slice], seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).uniform(0.3, 0.5, (height, width)).astype(np.float32)
    image[place] = 1.0
    return image


CORNER = (slice(8, 40), slice(110, 150))  # up and to the right: neither mirrored nor transposed


def assert_heat_in(heat: np.ndarray, place: tuple[slice, slice], share: float = 0.6) -> None:
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert place[0].start <= row < place[0].stop
    assert place[1].start <= column < place[1].stop
    assert heat[place].sum() / heat.sum() > share


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_heat_is_where_the_evidence_is(method: str, fit: str) -> None:
    image = image_with_spot(120, 160, CORNER)
    found = explain(spots(fit=fit), image, target="covid19", method=method)
    assert (found.target, found.method, found.heat.dtype, found.heat.shape) == (
        "covid19",
        method,
        "float32",
        (120, 160),
    )
    assert found.heat.min() == 0
    assert found.heat.max() == 1
    assert_heat_in(found.heat, CORNER, 0.5 if method == "integrated_gradients" else 0.6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mode", "classes", "channels"),
    [("binary", ("normal", "covid19"), 1), ("multilabel", CLASSES, 3), ("multiclass", CLASSES, 3)],
)
def test_every_kind_of_answer_and_of_channels(method: str, mode: str, classes: tuple[str, ...], channels: int) -> None:
    model = spots(mode, classes, channels=channels)
    image = image_with_spot(64, 64, (slice(40, 60), slice(4, 20)))
    found = explain(model, image, method=method)
    assert found.target == "covid19"  # the most probable one
    assert found.probability == pytest.approx(float(model.predict(torch.from_numpy(image)[None, None])[0, 1]))
    assert_heat_in(found.heat, (slice(38, 62), slice(2, 22)), 0.5)


def test_of_two_classes_the_other_one_has_no_evidence_in_the_spot() -> None:
    image = image_with_spot(64, 64, (slice(40, 60), slice(4, 20)))
    found = explain(spots("binary", ("normal", "covid19")), image, target="normal")
    assert found.empty
    assert found.to_dict()["empty"] is True
    assert found.to_dict()["peak"] is None
    assert "covid19" not in found.note
    assert "normal" in found.note
    assert (found.overlay(image) == np.rint(image * 255)[..., None]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("region", ["lungs", "background"])
def test_there_is_no_heat_where_the_model_does_not_look(method: str, region: str) -> None:
    image = np.ones((96, 96), np.float32) * 0.9
    image[::3] = 1.0
    lungs = np.zeros((96, 96), bool)
    lungs[20:70, 10:40] = lungs[20:70, 56:86] = True
    model = spots(region=region, lung_dilation=0.05, image_size=(96, 96))
    heat = explain(model, image, lungs, target="covid19", method=method).heat
    wide = dilate(torch.from_numpy(lungs)[None, None].float(), 0.05)[0, 0].numpy() > 0
    assert heat.any()
    assert heat[wide if region == "background" else ~wide].max() == 0


def test_each_member_gets_the_lungs_that_its_region_means() -> None:
    phantom = draw_phantom(1, size=(96, 96))
    members = {region: spots(region=region) for region in ("lungs", "background", "full")}
    ensemble = EnsembleModel(members, weights={"lungs": 1, "background": 2, "full": 1})
    found = explain(ensemble, phantom.image, phantom.masks, target="covid19")
    alone = [explain(member, phantom.image, phantom.masks, target="covid19").heat for member in members.values()]
    mixed = alone[0] + 2 * alone[1] + alone[2]
    np.testing.assert_allclose(found.heat, mixed / mixed.max(), atol=1e-6)
    field = explain(members["lungs"], phantom.image, phantom.lung_field, target="covid19").heat
    np.testing.assert_array_equal(alone[0], field)


def test_many_images_of_many_sizes_are_explained_as_each_alone() -> None:
    places = [(slice(5, 30), slice(60, 80)), (slice(50, 90), slice(10, 30)), (slice(70, 90), slice(70, 90))]
    images = [
        image_with_spot(*size, place) for size, place in zip([(80, 100), (100, 64), (96, 96)], places, strict=True)
    ]
    model = spots()
    together = explain_many(model, images, target=["covid19", None, "covid19"], batch_size=2)
    for image, found, place in zip(images, together, places, strict=True):
        np.testing.assert_allclose(found.heat, explain(model, image, target="covid19").heat, atol=1e-5)
        assert_heat_in(found.heat, place)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients", "occlusion"])
def test_a_step_that_crops_is_undone(method: str) -> None:
    image = np.zeros((128, 128), np.float32)
    image[60:120, 50:120] = 0.6
    spot = (slice(66, 80), slice(100, 114))
    image[spot] = 1.0
    model = spots(steps=({"name": "crop", "margin": 0.0},))
    model._steps = Preprocess(model.config.preprocess.steps)
    heat = explain(model, image, target="covid19", method=method).heat
    assert_heat_in(heat, (slice(62, 86), slice(94, 120)), 0.8)


NETWORKS = (
    "timm:resnet18",
    "timm:mobilenetv3_small_100",
    "timm:densenet121",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "torchvision:squeezenet1_1",
    "cnn19",
)
MORE_NETWORKS = (
    "timm:deit_tiny_distilled_patch16_224",
    "timm:hrnet_w18_small",
    "timm:vgg11",
    "torchvision:swin_t",
    "torchvision:vit_b_16",
    "xrv:densenet121",
)


@pytest.fixture(
    scope="module", params=[*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_NETWORKS)]
)
def network(request: pytest.FixtureRequest) -> ClassificationModel:
    torch.manual_seed(0)
    size = (224, 224) if "vit" in request.param or "swin" in request.param or "deit" in request.param else (128, 128)
    args = {"window_size": 7} if "timm:swin" in request.param else {}
    preprocess = PreprocessConfig(image_size=size)
    config = ModelConfig("classification", request.param, CLASSES, network_args=args, preprocess=preprocess)
    model = ClassificationModel(config)
    head = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    nn.init.normal_(head.weight, std=0.05)  # some answer nothing before they are trained
    return model.eval()


def test_maps_of_every_network_lie_as_the_image_does(network: ClassificationModel) -> None:
    """A change in one place of the image changes the same place of the map most."""
    height, width = network.config.preprocess.image_size
    image = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    rows, columns = slice(height // 4, height // 4 + 16), slice(3 * width // 4, 3 * width // 4 + 16)
    changed[..., rows, columns] = 1 - changed[..., rows, columns]
    for names in (_named_layers(network.network), []):
        found = []
        for given in (image, changed):
            with recorded(network.network, names) as outputs, torch.no_grad():
                network(given)
            found.append([as_maps(output, (height, width)) for output in outputs])
        pairs = [pair for pair in zip(*found, strict=True) if pair[0] is not None and max(pair[0].shape[2:]) >= 4]
        if pairs:
            break
    before, after = pairs[-1]
    change = (after - before).norm(dim=1)[0].numpy()
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs((row + 0.5) / change.shape[0] - (height // 4 + 8) / height) < 0.26, change
    assert abs((column + 0.5) / change.shape[1] - (3 * width // 4 + 8) / width) < 0.26, change


def test_every_network_is_explained(network: ClassificationModel) -> None:
    image = draw_phantom(2, label="covid19", size=(150, 130)).image
    maps = [explain(network, image, target=name).heat for name in CLASSES]
    assert all(heat.shape == (150, 130) and np.isfinite(heat).all() for heat in maps)
    assert explain(network, image, method="hirescam").heat.any()
    assert not all(np.array_equal(a, b) for a, b in pairwise(maps))


def test_the_layer_is_the_last_one_that_the_answer_depends_on() -> None:
    """A vision transformer reads its answer from the class token: the image's tokens of the last block say nothing."""
    torch.manual_seed(0)
    args = {"depth": 3}
    preprocess = PreprocessConfig(image_size=(224, 224))
    model = ClassificationModel(
        ModelConfig("classification", "timm:vit_tiny_patch16_224", CLASSES, "multiclass", args, preprocess)
    ).eval()
    assert [explain(model, draw_phantom(3, size=(96, 96)).image, target=name).empty for name in CLASSES].count(True) < 2


def test_registers_and_rectangles_of_tokens() -> None:
    tokens = torch.arange(2 * 14 * 10 * 3, dtype=torch.float32).reshape(2, 140, 3)
    for prefix in (0, 1, 5):
        padded = torch.cat((torch.full((2, prefix, 3), -1.0), tokens), 1)
        maps = as_maps(padded, (224, 160), prefix)
        assert maps is not None
        assert torch.equal(maps, tokens.reshape(2, 14, 10, 3).permute(0, 3, 1, 2))
    nhwc = torch.rand(1, 7, 7, 768)
    assert as_maps(nhwc, (224, 224)).shape == (1, 768, 7, 7)  # type: ignore[union-attr]
    assert as_maps(torch.rand(1, 3, 197, 64), (224, 224)) is None  # heads of attention
    assert as_maps(torch.rand(1, 512, 1, 1), (224, 224)) is None


def test_the_model_is_left_as_it_was() -> None:
    model = spots().train()
    model.network.backbone.requires_grad_(False)
    model.network.backbone[1].eval()
    model.network.head.weight.grad = torch.ones_like(model.network.head.weight)
    flags = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    image = image_with_spot(64, 64, CORNER)
    with torch.no_grad():
        for method in METHODS:
            explain(model, image, target="normal", method=method)
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (model.network.head.weight.grad == 1).all()
    assert all(p.grad is None for p in model.network.backbone.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_log_odds_are_those_of_the_probability(mode: Any) -> None:
    model = spots(mode, CLASSES[:2] if mode == "binary" else CLASSES)
    logits = torch.randn(6, model.config.outputs, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    chances = model.probabilities(logits).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_odds(model, logits, targets), chances.logit(), rtol=1e-4, atol=1e-4)


def test_captums_own_gradients_add_up() -> None:
    """What integrated gradients give to all places is the difference that the image makes (their completeness)."""
    from covidcxr.explain import _seen_by, _without_image
    from covidcxr.explain.methods import Attribution, find_method

    model = spots("binary", CLASSES[:2])
    image = resize_image(
        torch.from_numpy(image_with_spot(64, 64, (slice(20, 40), slice(20, 40))))[None, None], (64, 64)
    )
    sight = model.preprocess(image)
    plain = _without_image(model, sight, _seen_by(model, None, [(64, 64)]))
    attribution = Attribution(model, sight, plain, torch.tensor([1]))
    heat = find_method("integrated_gradients")(attribution)
    with torch.no_grad():
        difference = attribution.score(sight, attribution.targets) - attribution.score(plain, attribution.targets)
    assert float(heat.sum()) == pytest.approx(float(difference), rel=0.05)


def test_what_cannot_be_explained_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_with_spot(64, 64, CORNER)
    model = spots()
    with pytest.raises(UnknownNameError, match="Did you mean 'covid19'"):
        explain(model, image, target="covid")
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        explain(model, image, method="grad-cam")
    with pytest.raises(ConfigError, match="one lung mask and one target an image"):
        explain_many(model, [image], target=["covid19", "normal"])
    lungs = spots(region="lungs")
    with pytest.raises(ConfigError, match="needs the lung mask"):
        explain(lungs, image)
    with pytest.raises(ConfigError, match="its image's size"):
        explain(lungs, image, np.ones((32, 32), bool))
    with pytest.raises(ConfigError, match="draw it over its own image"):
        explain(model, image).overlay(image[:32])
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 3))
    with pytest.raises(ConfigError, match="no layer whose output is a map"):
        explain(model, image)
    assert explain(model, image, method="occlusion").heat.any()
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r'pip install "covidcxr\[explain\]"'):
        explain(model, image, method="occlusion")


def test_trees_have_no_gradient_but_can_be_occluded() -> None:
    torch.manual_seed(0)
    preprocess = PreprocessConfig(image_size=(64, 64))
    args = {"backbone": "timm:mobilenetv3_small_050", "stages": 2}
    model = ClassificationModel(
        ModelConfig("classification", "boosted", CLASSES, "multiclass", args, preprocess)
    ).eval()
    image = draw_phantom(1, size=(64, 64)).image
    for method in ("gradcam", "integrated_gradients"):
        with pytest.raises(ConfigError, match="use method='occlusion'"):
            explain(model, image, method=method)
    assert explain(model, image, method="occlusion").empty  # trees that have not grown


def test_heat_is_saved_as_data_and_as_a_picture(tmp_path: Path) -> None:
    image = image_with_spot(120, 160, CORNER)
    found = explain(spots(), image, target="covid19")
    path = found.save(tmp_path / "new", "film", image)
    assert json.loads(path.read_text()) == found.to_dict()
    again = read_image(tmp_path / "new" / "film.heat.png")
    np.testing.assert_allclose(again, found.heat, atol=1e-5)
    picture = found.overlay(image)
    assert (picture.dtype, picture.shape) == ("uint8", (120, 160, 3))
    cold = found.heat == 0
    assert (picture[cold] == np.rint(image[cold] * 255)[:, None]).all()
    assert (picture[found.heat == 1, 0] > picture[found.heat == 1, 2]).all()  # warm colours
    assert (tmp_path / "new" / "film.heat-overlay.png").is_file()
    assert len(list(explain(spots(), image).save(tmp_path / "bare", "x").parent.iterdir())) == 2


# --- predictions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def _box_around(lungs: np.ndarray) -> np.ndarray:
    """What the classifier of mini sees, and a margin for sizes that were rounded."""
    mask = torch.from_numpy(lungs)[None, None].float()
    return dilate(apply_region(torch.ones_like(mask), mask, "box"), 0.06)[0, 0].numpy() > 0


def test_a_prediction_explains_itself(mini: Pipeline) -> None:
    answer = mini(draw_phantom(4, label="covid19", size=(200, 180)).image)
    found = answer.explain()
    best = max(answer.probabilities, key=lambda name: answer.probabilities[name])
    assert found.target == (answer.label or best)
    assert found.probability == answer.probabilities[found.target]
    assert found.heat.shape == answer.image.shape
    assert found.heat[~_box_around(answer.masks["lung_field"])].max() == 0
    other = answer.explain("normal", "occlusion")
    assert (other.target, other.method) == ("normal", "occlusion")
    assert "classifier" not in answer.to_dict()
    assert "Classif" not in repr(answer)


def test_a_prediction_that_cannot_be_explained_says_why(mini: Pipeline) -> None:
    only_lungs = Pipeline(lung_segmenter=mini.lung_segmenter)
    phantom = draw_phantom(4, size=(128, 128))
    with pytest.raises(ConfigError, match="no classifier to explain"):
        only_lungs(phantom.image).explain()
    with pytest.raises(ConfigError, match="was not run"):
        mini(np.zeros((128, 128), np.float32)).explain()
    assert isinstance(mini.lung_segmenter, SegmentationModel)


# --- faithfulness --------------------------------------------------------------------------------------------------


def test_a_true_map_beats_a_random_one() -> None:
    places = [(slice(4, 20), slice(40, 60)), (slice(44, 60), slice(4, 20)), (slice(24, 40), slice(24, 40))]
    images = np.stack([image_with_spot(64, 64, place, seed) for seed, place in enumerate(places)])
    model = spots()
    for method in ("gradcam", "occlusion"):
        heat = np.stack([found.heat for found in explain_many(model, list(images), target="covid19", method=method)])
        found = faithfulness(model, torch.from_numpy(images)[:, None], torch.from_numpy(heat), "covid19")
        assert (found.area("deletion") < found.area("random_deletion") - 0.1).all()
        assert (found.area("insertion") > found.area("random_insertion") + 0.1).all()
        whole = model.predict(torch.from_numpy(images)[:, None])[:, 1].numpy()
        np.testing.assert_allclose(found.deletion[:, 0], whole, atol=1e-6)
        np.testing.assert_allclose(found.insertion[:, -1], whole, atol=1e-6)
        np.testing.assert_allclose(found.deletion[:, -1], found.random_deletion[:, -1], atol=1e-6)
        assert json.loads(json.dumps(found.to_dict()))["areas"]["deletion"] == found.area("deletion").tolist()


def test_faithfulness_takes_away_only_what_is_seen() -> None:
    lungs = torch.zeros(1, 1, 64, 64)
    lungs[..., 16:48, 16:48] = 1
    image = 0.7 + 0.3 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    outside = (1 - lungs)[:, 0]  # a map of what the model cannot see orders nothing: it is as good as chance
    found = faithfulness(spots(region="lungs"), image, outside, ["covid19"], lungs, steps=4)
    assert len(found.fractions) == 5
    assert len(set(np.round(found.deletion[0], 6))) > 3  # else all the first steps would be spent outside
    again = faithfulness(spots(region="lungs"), image, outside, ["covid19"], lungs, steps=4)
    np.testing.assert_array_equal(found.random_deletion, again.random_deletion)
    with pytest.raises(ConfigError, match="one map for an image"):
        faithfulness(spots(), image, outside, "covid19", steps=0)
    with pytest.raises(UnknownNameError, match="no class"):
        faithfulness(spots(), image, outside, "covid")
    with pytest.raises(ConfigError, match="one target"):
        faithfulness(spots(), image, outside, ["covid19", "normal"])


def test_an_area_is_between_nothing_and_all() -> None:
    top, left, height, width = letterbox_box(120, 160, (64, 64))
    image = resize_image(torch.from_numpy(image_with_spot(120, 160, CORNER))[None, None], (64, 64))
    heat = torch.zeros(1, 64, 64)
    heat[:, top : top + height, left : left + width] = 1
    found = faithfulness(spots(), image, heat, "covid19", steps=1)
    assert all(0 <= float(found.area(name)[0]) <= 1 for name in ("deletion", "insertion"))


# --- the verb ------------------------------------------------------------------------------------------------------


def test_images_are_explained_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "films"
    for number, label in enumerate(("covid19", "normal")):
        write_image(images / "ward" / f"{label}.png", draw_phantom(number, label=label, size=(96, 90)).image)
    (images / "broken.png").write_text("no image")
    write_image(images / "black.png", np.zeros((90, 90), np.float32))
    out = images / "heat"
    assert main(["explain", str(images), "--target", "covid19", "--out", str(out), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["films"], summary["failed"]) == (4, 2)
    entries = {entry["name"]: entry for entry in summary["entries"]}
    assert entries["ward/normal.png"]["target"] == "covid19"
    assert "unsupported file format" in entries["broken.png"]["error"]
    assert "nothing can be explained" in entries["black.png"]["error"]
    assert json.loads((out / "explanations.json").read_text())["entries"] == summary["entries"]
    heat = read_image(out / "films" / "ward" / "covid19.png.heat.png")
    assert heat.shape == (96, 90)
    assert heat.any() != entries["ward/covid19.png"]["empty"]
    page = (out / "index.html").read_text()
    assert page.count("<img") == 4
    assert "broken.png" in page
    assert main(["explain", str(images / "ward"), "--out", str(out)]) == 2
    assert "holds the results of another run" in capsys.readouterr().err
    assert main(["explain", str(images / "ward"), "--out", str(out), "--overwrite"]) == 0
    assert "2 images, 0 of them not explained" in capsys.readouterr().out
    assert [name for _, name in find_images([images])[0] if "heat" in name] == []  # our own maps are no images


def test_wrong_settings_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], mini: Pipeline) -> None:
    write_image(tmp_path / "film.png", draw_phantom(1, size=(96, 96)).image)
    for words, message in (
        (["--target", "covid"], "Did you mean 'covid19'"),
        (["--method", "grad-cam"], "Did you mean 'gradcam'"),
        (["--device", "cuda:77"], "cannot be used"),
    ):
        assert main(["explain", str(tmp_path / "film.png"), "--out", str(tmp_path / "out"), *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no classifier to explain"):
        explain_images([tmp_path / "film.png"], tmp_path, model=Pipeline(lung_segmenter=mini.lung_segmenter))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="No images found"):
        explain_images([tmp_path / "empty"], tmp_path)


@pytest.mark.real
def test_heat_of_real_images_lies_in_the_lungs_that_the_model_sees(real_data: Path, mini: Pipeline) -> None:
    images = sorted((real_data / "images").rglob("*.jpg"))[::300][:3]
    answers = [one for one in mini.predict(images) if isinstance(one, Prediction) and one.probabilities]
    assert answers
    for answer in answers:
        found = answer.explain()
        assert found.heat[~_box_around(answer.masks["lung_field"])].max(initial=0) == 0


def test_a_caller_in_inference_mode_gets_the_same_explanation() -> None:
    config = ModelConfig(
        "classification", "timm:test_resnet", CLASSES, preprocess=PreprocessConfig(image_size=(32, 32))
    )
    torch.manual_seed(0)
    model = ClassificationModel(config)
    image = draw_phantom(0, size=(64, 64)).image
    outside = explain(model, image)
    with torch.inference_mode():
        inside = explain(model, image)
        torch.manual_seed(0)
        made_inside = explain(ClassificationModel(config), image)
    np.testing.assert_array_equal(inside.heat, outside.heat)
    np.testing.assert_array_equal(made_inside.heat, outside.heat)
