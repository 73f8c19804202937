"""Networks by name: they build, they never go to the network, and what is wrong is told in our words."""

from __future__ import annotations

import dataclasses
import io
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError, PretrainedError, UnknownNameError
from covidcxr.networks import backbone_of, build_network
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS, Registry

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
        ({"upsampling": 2}, "Unknown key 'upsampling'"),  # the masks would not have the films' size
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


def test_smp_weights_from_a_file(tmp_path: Path) -> None:
    donor = smp.encoders.get_encoder(SMALL, in_channels=1, weights=None)
    path = tmp_path / "encoder.safetensors"
    save_file(donor.state_dict(), path)
    network = build_network(segmenter("smp:fpn", encoder=SMALL), pretrained_backbone=str(path))
    ours = network.encoder.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(ours[name], tensor) for name, tensor in donor.state_dict().items())
    with pytest.raises(PretrainedError, match=r"smp:fpn with resnet18.*encoder\.safetensors"):
        build_network(segmenter("smp:fpn", encoder="resnet18"), pretrained_backbone=str(path))


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
