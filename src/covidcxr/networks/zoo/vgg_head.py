"""VGG16 with dense layers of its own, of 48,795,457 parameters."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from covidcxr.errors import CovidCXRError
from covidcxr.networks.torchvision import fetch_weights, sum_first_convolution
from covidcxr.networks.weights import copy_backbone, read_weights, weights_error
from covidcxr.networks.zoo.dense_head import DenseHeadNetwork
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["vgg16_head"]


@CLASSIFICATION_NETWORKS.register("vgg16_head")
def vgg16_head(
    in_channels: int, num_classes: int, *, image_size: tuple[int, int], pretrained: bool | str = False
) -> nn.Module:
    """Build the convolutions of VGG16 with dense layers of 1024, 512 and the outputs, for one image size.

    For films of 256x256 in three channels and one output these are the 48,795,457 parameters of Wali 2021
    ("Detecting COVID-19 from Medical X-Ray Images"). The activation of the dense layers (ReLU here) is not told there.

    Args:
        in_channels: Channels of the input; 3 in the original.
        num_classes: Number of outputs; 1 in the original.
        image_size: Height and width of the input; (256, 256) in the original.
        pretrained: True for torchvision's ImageNet weights, or the path of a file with VGG16's weights by
            torchvision or timm.

    Raises:
        ConfigError: If nothing is left of films of this size.
        PretrainedError: If pretrained weights cannot be had.
    """
    from torchvision.models.vgg import cfgs, make_layers

    backbone: nn.Sequential = make_layers(cfgs["D"])  # torchvision's vgg16 without its 123 million dense weights
    for layer in backbone:
        if isinstance(layer, nn.Conv2d):  # as torchvision's own
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    sum_first_convolution(backbone, in_channels)
    rows, columns = (side // 32 for side in image_size)
    network = DenseHeadNetwork(backbone, (512, rows, columns), (1024, 512), num_classes, image_size)
    if pretrained:
        tensors = read_weights("vgg16_head", pretrained) if isinstance(pretrained, str) else fetch_weights("vgg16")
        try:
            copy_backbone(backbone, tensors)
        except CovidCXRError as error:
            raise weights_error("vgg16_head", pretrained, error) from error
    return network
