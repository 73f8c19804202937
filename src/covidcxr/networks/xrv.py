"""torchxrayvision's classifiers, by name: for its weights that were trained on chest radiographs (CheXNet-style).

Built by torchvision, of which torchxrayvision's networks are copies for grey images; the weights come as a file.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from covidcxr.config import PreprocessConfig, check_keys
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.networks.torchvision import TorchvisionNetwork, load_backbone, sum_first_convolution
from covidcxr.networks.weights import read_weights, weights_error

__all__ = ["XRayVisionNetwork", "xrv_network"]

_CLASSES = {"densenet121": ("DenseNet", "densenet121-res224-all"), "resnet50": ("ResNet", "resnet50-res512-all")}
"""Name -> torchxrayvision's class, and its weights that were trained on most images."""


class XRayVisionNetwork(TorchvisionNetwork):
    """A classifier that sees images as torchxrayvision scales them, from -1024 (black) to 1024 (white).

    Args:
        network: What torchvision built, for grey images.
        mean: The mean that preprocessing subtracted from images in [0, 1]; it is undone here.
        std: The standard deviation that it divided by.
    """

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__(network)
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs] of normalised images [batch, 1, height, width]."""
        grey = image * self.std + self.mean
        return super().forward((2 * grey - 1) * 1024)


def xrv_network(
    name: str,
    preprocess: PreprocessConfig,
    pretrained: bool | str = False,
    /,
    *,
    in_channels: int,
    num_classes: int,
    **network_args: Any,
) -> nn.Module:
    """Build a network that takes torchxrayvision's weights (Cohen 2022, https://arxiv.org/abs/2111.00595).

    Its scaling of images, [-1024, 1024], happens inside, whatever mean and std preprocessing has. Its 18 findings
    give way to a new answering layer.

    Args:
        name: "densenet121" (weights made at 224 x 224) or "resnet50" (512 x 512); any image size runs.
        preprocess: Its mean and std count.
        pretrained: The path of a weights file. True is answered with how to make one: what torchxrayvision
            publishes are pickles, which this library never reads.
        in_channels: 1.
        num_classes: Number of outputs.
        **network_args: None.

    Raises:
        UnknownNameError: If torchxrayvision has no such network.
        ConfigError: If the images are not grey, or an argument is given.
        PretrainedError: If pretrained weights cannot be had.
    """
    from torchvision.models import get_model

    if name not in _CLASSES:
        raise UnknownNameError(f"torchxrayvision has no network {name!r}. {did_you_mean(name, _CLASSES)}")
    check_keys(network_args, set(), f"network_args of 'xrv:{name}'")
    if in_channels != 1:
        raise ConfigError(f"xrv:{name} reads grey images: set preprocess.channels to 1, not {in_channels}.")
    network = get_model(name, weights=None, num_classes=num_classes)
    sum_first_convolution(network, in_channels)
    network = XRayVisionNetwork(network, preprocess.mean[0], preprocess.std[0])
    if pretrained:
        load_backbone(network, _read(name, pretrained), f"xrv:{name}", pretrained, "classifier.", "fc.", "op_threshs")
    return network


def _read(name: str, pretrained: bool | str) -> dict[str, Tensor]:
    kind, weights = _CLASSES[name]
    cure = (
        f"Make a file of tensors once, where torchxrayvision may load its own: "
        f'python -c "import torchxrayvision as xrv; from safetensors.torch import save_file; '
        f"save_file(xrv.models.{kind}(weights='{weights}').state_dict(), 'xrv.safetensors')\"."
    )
    if isinstance(pretrained, str):
        return read_weights(f"xrv:{name}", pretrained, cure)
    raise weights_error(f"xrv:{name}", pretrained, "they are published as pickles, which may run code", cure)
