"""Models: preprocessing inside, probabilities out, and saved so that they come back bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError, PretrainedError, UnknownNameError
from covidcxr.models import ClassificationModel, CXRModel, SegmentationModel

FPN = {"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
UNET = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": [16, 16, 8, 8, 8]}


def classifier(**changes: Any) -> ModelConfig:
    preprocess = PreprocessConfig(**{"image_size": (64, 64), **changes.pop("preprocess", {})})
    settings = {"network": "timm:mobilenetv3_small_050", "classes": ("covid", "pneumonia", "normal"), **changes}
    return ModelConfig(task="classification", preprocess=preprocess, **settings)


def segmenter(**changes: Any) -> ModelConfig:
    preprocess = PreprocessConfig(**{"image_size": (64, 64), **changes.pop("preprocess", {})})
    settings = {"network": "smp:fpn", "classes": ("lung", "infection"), "mode": "multilabel", "network_args": FPN}
    return ModelConfig(task="segmentation", preprocess=preprocess, **{**settings, **changes})


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def build(config: ModelConfig) -> Any:
    """The same model each time. All its weights and batch-norm statistics are its own: losing any would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (ClassificationModel if config.task == "classification" else SegmentationModel)(config)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.mul_(1 + 0.2 * noise) if "var" in name else tensor.add_(0.05 * (noise - 0.5))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ClassificationModel:
    return build(classifier())


# --- preprocessing -------------------------------------------------------------------------------------------------


def test_preprocessing_is_inside(model: ClassificationModel) -> None:
    image = images(2, 1, 64, 32)
    padded = torch.zeros(2, 1, 64, 64)
    padded[..., 16:48] = image
    assert torch.equal(model(image), model(padded))
    with torch.no_grad():
        by_hand = model.network((padded - 0.5) / 0.25)
    torch.testing.assert_close(model(image), by_hand)


def test_a_large_image_is_the_small_one_that_pil_makes_of_it(model: ClassificationModel) -> None:
    image = images(300, 200)
    small = np.zeros((64, 64), dtype=np.float32)
    small[:, 10:53] = np.array(Image.fromarray(image.numpy()).resize((43, 64), Image.Resampling.BILINEAR))
    torch.testing.assert_close(
        model.predict(image[None, None]), model.predict(torch.from_numpy(small)[None, None]), atol=1e-4, rtol=1e-4
    )


def test_three_channels_are_the_grey_one_repeated() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = build(classifier(preprocess={"channels": 3, "mean": mean, "std": std, "fit": "stretch"}))
    image = images(2, 1, 64, 64)
    seen = model.preprocess(image)
    assert seen.shape == (2, 3, 64, 64)
    for channel in range(3):
        torch.testing.assert_close(seen[:, channel], (image[:, 0] - mean[channel]) / std[channel])
    one = build(classifier(preprocess={"channels": 3, "mean": (0.4,), "std": (0.2,)}))
    torch.testing.assert_close(one.preprocess(image), ((image - 0.4) / 0.2).expand(2, 3, 64, 64))


@pytest.mark.parametrize("size", [(64, 64), (128, 128)])
@pytest.mark.parametrize(("region", "seen"), [("lungs", True), ("background", False)])
def test_a_region_is_all_that_is_seen(region: str, seen: bool, size: tuple[int, int]) -> None:
    model = build(classifier(preprocess={"region": region}))
    image, lungs = images(1, 1, *size), torch.zeros(1, 1, *size)
    side = size[0]
    lungs[..., side // 4 : side // 2, side // 4 : side // 2] = 1
    inside, outside = image.clone(), image.clone()
    inside[..., side // 3 - 2 : side // 3 + 2, side // 3 - 2 : side // 3 + 2] = 0
    outside[..., : side // 8, :] = 0
    logits = model(image, lungs)
    assert torch.equal(model(inside, lungs), logits) is not seen
    assert torch.equal(model(outside, lungs), logits) is seen


def test_widened_lungs_let_more_be_seen() -> None:
    image, lungs = images(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    lungs[..., 20:40, 20:40] = 1
    beside = image.clone()
    beside[..., 42:44, 20:40] = 0  # 2 to 3 pixels below the lungs
    for dilation, seen in ((0.0, False), (0.06, True)):
        model = build(classifier(preprocess={"region": "lungs", "lung_dilation": dilation}))
        assert torch.equal(model(image, lungs), model(beside, lungs)) is not seen


def test_a_region_needs_the_lungs_of_every_image() -> None:
    model = build(classifier(preprocess={"region": "lungs"}))
    image = images(2, 1, 64, 64)
    with pytest.raises(ConfigError, match='region="lungs" needs the lung mask of every image'):
        model.predict(image)
    unknown = torch.ones(2, 1, 64, 64)
    unknown[1] = torch.nan
    with pytest.raises(ConfigError, match="every image"):
        model.predict(image, unknown)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 32, 32), (2, 1, 64, 32), (2, 2, 64, 64)])
def test_lung_masks_have_the_shape_of_the_images(shape: tuple[int, ...]) -> None:
    model = build(classifier(preprocess={"region": "lungs"}))
    with pytest.raises((ConfigError, TypeCheckError), match=r"lung masks|lung_mask"):
        model.predict(images(2, 1, 64, 64), torch.ones(shape))


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (37, 91), (300, 50), (1, 1), (5, 257)])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_maps_come_back_at_the_images_size(size: tuple[int, int], fit: str) -> None:
    model = build(segmenter(preprocess={"image_size": (32, 64), "fit": fit}))
    image = images(2, 1, *size)
    probabilities = model.predict(image)
    assert probabilities.shape == (2, 2, *size)
    assert probabilities.dtype == torch.float32
    assert probabilities.min() > 0
    assert probabilities.max() < 1
    assert not probabilities.requires_grad
    fitted = model.predict_resized(image)
    assert fitted.shape == (2, 2, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(fitted, model(image).sigmoid())


def test_maps_lie_where_the_image_shows_them() -> None:
    """An image beside black: its own map must not know of the padding's place."""
    model = build(segmenter())
    image = images(1, 1, 64, 32)
    padded = torch.nn.functional.pad(image, (16, 16))
    torch.testing.assert_close(model.predict(image), model.predict(padded)[..., 16:48])


@pytest.mark.parametrize("size", [(64, 64), (33, 20), (1, 7)])
@pytest.mark.parametrize(
    ("mode", "classes"),
    [("multiclass", ("a", "b", "c")), ("binary", ("a", "b")), ("multilabel", ("a", "b", "c")), ("multilabel", ("a",))],
)
def test_probabilities(mode: str, classes: tuple[str, ...], size: tuple[int, int]) -> None:
    model = build(classifier(mode=mode, classes=classes, temperature=2.0))
    image = images(3, 1, *size)
    probabilities = model.predict(image)
    assert probabilities.shape == (3, len(classes))
    with torch.no_grad():
        logits = (model(image) / 2.0).double()
    expected = {
        "multiclass": logits.exp() / logits.exp().sum(1, keepdim=True),
        "binary": torch.cat([1 - 1 / (1 + (-logits).exp()), 1 / (1 + (-logits).exp())], dim=1)[:, :2],
        "multilabel": 1 / (1 + (-logits).exp()),
    }[mode]
    torch.testing.assert_close(probabilities.double(), expected, atol=1e-6, rtol=1e-5)
    if mode != "multilabel":
        torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


def test_probabilities_of_sure_logits_are_numbers() -> None:
    for mode, logits in (("binary", [[-200.0], [200.0]]), ("multiclass", [[-200.0, 200.0], [200.0, -200.0]])):
        model = build(classifier(mode=mode, classes=("a", "b")))
        assert model.probabilities(torch.tensor(logits))[:, 1].tolist() == pytest.approx(
            [0, 1] if mode == "binary" else [1, 0]
        )


def test_temperature_calms_answers_without_changing_them(model: ClassificationModel) -> None:
    calm = build(classifier(temperature=4.0))
    image = images(8, 1, 64, 64)
    sharp, flat = model.predict(image), calm.predict(image)
    assert torch.equal(sharp.argmax(1), flat.argmax(1))
    assert (flat.max(1).values < sharp.max(1).values).all()
    torch.testing.assert_close(flat, (sharp.log() / 4).softmax(1))


def test_each_image_is_answered_by_itself(model: ClassificationModel) -> None:
    batch = images(4, 1, 64, 64)
    alone = torch.cat([model.predict(image[None]) for image in batch])
    torch.testing.assert_close(model.predict(batch), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [classifier(), segmenter()], ids=["classification", "segmentation"])
def test_predict_leaves_the_model_as_it_was(config: ModelConfig) -> None:
    model, image = build(config), images(2, 1, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model.predict(image)
    model.train()
    frozen = [module for module in model.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in frozen:
        module.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.predict(image), first)  # evaluation mode, although the model trains
    assert [module.training for module in model.modules()] == modes
    assert any(modes)
    assert not all(modes)
    with pytest.raises(ConfigError):
        model.predict(image + 1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", [classifier(), segmenter()], ids=["classification", "segmentation"])
@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (2, 3, 64, 64), (0, 1, 64, 64), (1, 1, 0, 64)])
def test_images_of_a_wrong_shape(config: ModelConfig, shape: tuple[int, ...]) -> None:
    with pytest.raises((ConfigError, TypeCheckError)):
        build(config).predict(torch.zeros(shape))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (255.0, r"must be in \[0, 1\], not \[0, 255\]: read them with read_image"),
        (-0.5, r"\[-0.5, 0\]"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (1.01, r"1\.01"),
    ],
)
def test_images_of_a_wrong_range(value: float, message: str, model: ClassificationModel) -> None:
    image = torch.zeros(2, 1, 64, 64)
    image[1, 0, 3, 4] = value
    with pytest.raises(ConfigError, match=message):
        model.predict(image)


def test_rounding_beyond_the_range_is_forgiven(model: ClassificationModel) -> None:
    model.predict(torch.tensor([-1e-6, 1 + 1e-6]).expand(1, 1, 64, 2))


def test_double_precision_is_no_obstacle(model: ClassificationModel) -> None:
    image = images(1, 1, 50, 60)
    torch.testing.assert_close(model.predict(image.double()), model.predict(image), atol=1e-6, rtol=1e-5)


# --- answers -------------------------------------------------------------------------------------------------------

SOME = ("several-answers-plausible",)
NONE = ("no-answer-plausible",)


@pytest.mark.parametrize(
    ("thresholds", "probabilities", "answer"),
    [
        ({}, (0.2, 0.5, 0.3), ("pneumonia", ())),
        ({}, (0.4, 0.3, 0.3), ("covid", ())),
        ({"covid": 0.3, "pneumonia": 0.3, "normal": 0.3}, (0.2, 0.5, 0.3), (None, SOME)),
        ({"covid": 0.3, "pneumonia": 0.3, "normal": 0.4}, (0.2, 0.5, 0.3), ("pneumonia", ())),
        ({"covid": 0.9, "pneumonia": 0.9, "normal": 0.9}, (0.2, 0.5, 0.3), (None, NONE)),
        ({"covid": 0.1, "pneumonia": 0.9, "normal": 0.9}, (0.2, 0.5, 0.3), ("covid", ())),
        ({"covid": 0.2}, (0.2, 0.49, 0.31), ("covid", ())),  # 0.5 for whom none is said; a threshold is in
    ],
)
def test_answers(thresholds: dict[str, float], probabilities: tuple[float, ...], answer: Any) -> None:
    model = ClassificationModel(classifier(thresholds=thresholds))
    assert model.answer(dict(zip(model.config.classes, probabilities, strict=True))) == answer


def test_thresholds_of_masks() -> None:
    assert build(segmenter(thresholds={"infection": 0.3})).thresholds() == (0.5, 0.3)


# --- saving --------------------------------------------------------------------------------------------------------

SAVED = {
    "mobilenet": classifier(temperature=1.7, thresholds={"covid": 0.4}),
    "resnet": classifier(network="timm:resnet10t", mode="binary", classes=("sick", "well")),
    "transformer": classifier(network="timm:vit_tiny_patch16_224", network_args={"depth": 2}, mode="multilabel"),
    "background": classifier(preprocess={"region": "background", "lung_dilation": 0.05, "channels": 3}),
    "fpn": segmenter(thresholds={"lung": 0.6}),
    "unet": segmenter(network="smp:unet", network_args=UNET, mode="binary", classes=("lung",)),
}

RELOAD = """
import socket, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from covidcxr import ClassificationModel, SegmentationModel
from covidcxr.hub import read_json

def unplugged(*_, **__):
    raise AssertionError("reached for the network")
socket.socket.connect = socket.getaddrinfo = unplugged
for folder in sorted(Path(sys.argv[1]).iterdir()):
    kind = ClassificationModel if read_json(folder / "config.json")["task"] == "classification" else SegmentationModel
    model = kind.from_pretrained(folder)
    assert not model.training
    given = load_file(folder / "given.safetensors")
    answer = model.predict(given["film"], given["lungs"]).contiguous()
    save_file({"probabilities": answer}, folder / "answer.safetensors")
    model.save_pretrained(folder / "again")
"""


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved models; in each, what another process made of it."""
    folder = tmp_path_factory.mktemp("saved")
    given = {"film": images(2, 1, 90, 70), "lungs": (images(2, 1, 90, 70, seed=1) > 0.5).float()}
    for name, config in SAVED.items():
        model = build(config)
        model.save_pretrained(folder / name)
        save_file(given, folder / name / "given.safetensors")
        answer = model.predict(given["film"], given["lungs"]).contiguous()
        save_file({"probabilities": answer}, folder / name / "here.safetensors")
    done = subprocess.run([sys.executable, "-c", RELOAD, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_another_process_gives_the_same_bits(name: str, reloaded: Path) -> None:
    here, there = (load_file(reloaded / name / f"{file}.safetensors")["probabilities"] for file in ("here", "answer"))
    assert here.std() > 0
    assert torch.equal(here, there)
    for file in ("config.json", "model.safetensors"):
        assert (reloaded / name / "again" / file).read_bytes() == (reloaded / name / file).read_bytes()
    config = json.loads((reloaded / name / "config.json").read_text(encoding="utf-8"))
    assert len(config.pop("weights_sha256")) == 64
    assert ModelConfig.from_dict(config) == SAVED[name]


@pytest.fixture
def folder(tmp_path: Path, reloaded: Path) -> Path:
    """A saved classifier, to be spoilt."""
    return Path(shutil.copytree(reloaded / "mobilenet", tmp_path / "model"))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_nothing_but_the_model_is_saved(tmp_path: Path, model: ClassificationModel) -> None:
    target = model.save_pretrained(tmp_path / "a" / "b")
    assert target == tmp_path / "a" / "b"
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(target / "model.safetensors")) == set(model.network.state_dict())
    model.save_pretrained(target)  # over itself


def test_the_other_kind_of_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match="SegmentationModel is for segmentation, but the config is of a classifi"):
        SegmentationModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temprature": 2}, ConfigError, r"Unknown key 'temprature' in .*config\.json\. Did you mean 'temperature'\?"),
        ({"preprocess": {"region": "heart"}}, ConfigError, r"config\.json.*region must be one of"),
        ({"format_version": 2, "new": 1}, PretrainedError, r"config\.json has format version 2.*pip install --upgrade"),
        ({"network": "timm:hf-hub:x/y"}, ConfigError, "'timm:hf-hub:x/y' is no classification network"),
        ({"network": "timm:no_such_network"}, UnknownNameError, "timm has no network"),
        ({"network_args": {"pretrained": True}}, ConfigError, "may not hold 'pretrained'"),
        ({"network_args": {"checkpoint_path": "/etc/passwd"}}, ConfigError, "may not hold 'checkpoint_path'"),
        ({"network": "timm:resnet10t"}, PretrainedError, "do not fit the network of its config: missing"),
        ({"classes": ["a", "b"], "thresholds": {}}, PretrainedError, r"classifier\.weight has shape \(3, .*not \(2, "),
        ({"weights_sha256": "0" * 64}, PretrainedError, r"model\.safetensors.*SHA-256 differs"),
        ({"weights_sha256": None}, ConfigError, "'weights_sha256' is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_altered_configs(changes: dict[str, Any], error: type[Exception], message: str, folder: Path) -> None:
    change(folder, **changes)
    with pytest.raises(error, match=message):
        ClassificationModel.from_pretrained(folder)


def test_altered_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for wrong in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(wrong)
        with pytest.raises(PretrainedError, match=r"model\.safetensors.*truncated or was altered"):
            ClassificationModel.from_pretrained(folder)
    path.unlink()
    with pytest.raises(PretrainedError, match=r"model\.safetensors is missing"):
        ClassificationModel.from_pretrained(folder)


def test_empty_folder_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"config\.json is missing: this folder is not a complete saved model"):
        ClassificationModel.from_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="is no folder, no installed weights"):
        ClassificationModel.from_pretrained(tmp_path / "nothing")


def test_a_model_out_of_a_pipeline(tmp_path: Path, reloaded: Path) -> None:
    for part in ("mobilenet", "fpn"):
        shutil.copytree(reloaded / part, tmp_path / part)
    (tmp_path / "pipeline.json").write_text('{"components": ["fpn", "mobilenet"]}')
    assert ClassificationModel.from_pretrained(tmp_path).config == SAVED["mobilenet"]
    assert SegmentationModel.from_pretrained(tmp_path).config == SAVED["fpn"]
    shutil.copytree(reloaded / "unet", tmp_path / "unet")  # left behind: the index does not name it
    assert SegmentationModel.from_pretrained(tmp_path).config == SAVED["fpn"]
    (tmp_path / "pipeline.json").write_text('{"components": ["fpn", "mobilenet", "unet"]}')
    with pytest.raises(PretrainedError, match=r"several models \(fpn, mobilenet, unet\): name the one"):
        SegmentationModel.from_pretrained(tmp_path)


def test_models_are_abstract_or_final() -> None:
    with pytest.raises(TypeError, match="abstract"):
        CXRModel(classifier())  # type: ignore[abstract]
    for kind in (ClassificationModel, SegmentationModel):
        assert kind.__final__
    with pytest.raises(ConfigError, match="ClassificationModel is for classification"):
        ClassificationModel(segmenter())
    with pytest.raises(ConfigError, match="refused"):
        ClassificationModel(replace(classifier(), network_args={"no_such": 1}))


# --- shapes --------------------------------------------------------------------------------------------------------

CHECKED = """
import sys, types
import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception

def beartype_but_for_self(function):
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:  # it knows `Self` only where it decorates the class
        return function

sys.modules["checker"] = types.SimpleNamespace(check=beartype_but_for_self)
with jaxtyping.install_import_hook(["covidcxr.models", "covidcxr.transforms"], "checker.check"):
    import covidcxr.models, covidcxr.transforms
import torch
from covidcxr import ClassificationModel, ModelConfig, SegmentationModel
small = {"image_size": [64, 64], "region": "lungs", "lung_dilation": 0.05}
config = {"task": "classification", "network": "timm:resnet10t", "classes": ["a", "b"], "preprocess": small}
image, lungs = torch.rand(2, 1, 40, 50), torch.ones(2, 1, 40, 50)
for mode in ("multiclass", "binary", "multilabel"):
    assert ClassificationModel(ModelConfig.from_dict({**config, "mode": mode})).predict(image, lungs).shape == (2, 2)
other = {"task": "segmentation", "network": "smp:fpn", "mode": "multilabel", "network_args": {"encoder": "resnet18"}}
segmenter = SegmentationModel(ModelConfig.from_dict({**config, **other}))
assert segmenter.predict(image, lungs).shape == (2, 2, 40, 50)
for wrong in (image[:, 0], image.expand(2, 3, 40, 50), image.long(), "film"):
    try:
        segmenter.predict(wrong, lungs)
    except jaxtyping.TypeCheckError:
        continue
    raise AssertionError(f"not refused: {wrong}")
"""


def test_annotated_shapes_are_the_true_ones() -> None:
    done = subprocess.run([sys.executable, "-c", CHECKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
