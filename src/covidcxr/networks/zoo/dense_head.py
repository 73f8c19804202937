"""Networks whose features are flattened, not averaged: built for one image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.networks.classification import fetch_weights, sum_first_convolution
from covidcxr.networks.weights import copy_backbone, read_weights, weights_error
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["covidcnn2021", "vgg16_head"]


class _DenseHeadNetwork(nn.Module):
    """A backbone, its features flattened, and dense layers with ReLU between them.

    Args:
        backbone: Images to features [batch, channels, rows, columns].
        features: Channels, rows and columns of the features.
        hidden: Outputs of the dense layers before the last one.
        num_classes: Number of outputs.
        image_size: Height and width of the images that give these features.

    Raises:
        ConfigError: If nothing is left of images of this size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: tuple[int, int, int],
        hidden: Sequence[int],
        num_classes: int,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        channels, rows, columns = features
        if not (rows and columns):
            raise ConfigError(f"Nothing is left of images of {image_size} after all strides: use a larger image_size.")
        self.image_size = tuple(image_size)
        self.backbone = backbone
        self.head = nn.Sequential(nn.Flatten())
        width = channels * rows * columns
        for made in hidden:
            self.head.extend((nn.Linear(width, made), nn.ReLU()))
            width = made
        self.head.append(nn.Linear(width, num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [batch, outputs].

        Raises:
            ConfigError: If the images do not have the size that the network was built for.
        """
        if (size := tuple(image.shape[-2:])) != self.image_size:
            raise ConfigError(
                f"This network was built for images of {self.image_size}, not {size}: build it with that image_size."
            )
        return cast(Tensor, self.head(self.backbone(image)))


@CLASSIFICATION_NETWORKS.register("covidcnn2021")
def covidcnn2021(
    in_channels: int, num_classes: int, *, image_size: tuple[int, int], dropout: float = 0.25
) -> nn.Module:
    """Build two convolutions of stride 3 and two dense layers, for one image size.

    For images of 256x256 in three channels and one output these are the 422,177 parameters of the student project
    "Covid-19 detection with X-Ray images" (2021). It gives the layers, their sizes and strides, but neither the
    activation (ReLU here) nor the rate of its two dropouts.

    Args:
        in_channels: Channels of the input; 3 in the original.
        num_classes: Number of outputs; 1 in the original.
        image_size: Height and width of the input; (256, 256) in the original.
        dropout: Fraction of the features dropped after each pooling, in [0, 1].

    Returns:
        The network: images [batch, in_channels, *image_size] to logits [batch, num_classes].

    Raises:
        ConfigError: If nothing is left of images of this size.
    """
    backbone = nn.Sequential(
        *(nn.Conv2d(in_channels, 64, 3, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
        *(nn.Conv2d(64, 32, 3, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
    )
    rows, columns = (side // 3 // 2 // 3 // 2 for side in image_size)
    return _DenseHeadNetwork(backbone, (32, rows, columns), (256,), num_classes, image_size)


@CLASSIFICATION_NETWORKS.register("vgg16_head")
def vgg16_head(
    in_channels: int,
    num_classes: int,
    *,
    image_size: tuple[int, int],
    hidden: Sequence[int] = (1024, 512),
    pretrained: bool | str = False,
) -> nn.Module:
    """Build the convolutions of VGG16, without its top, and new dense layers, for one image size.

    For images of 256x256 in three channels and one output these are the 48,795,457 parameters of Wali 2021
    ("Detecting COVID-19 from Medical X-Ray Images"). The activation of the dense layers (ReLU here) is not given there.

    Args:
        in_channels: Channels of the input; 3 in the original.
        num_classes: Number of outputs; 1 in the original.
        image_size: Height and width of the input; (256, 256) in the original.
        hidden: Outputs of the dense layers before the last one; [] = the last one alone.
        pretrained: True for torchvision's ImageNet weights, or the path of a file with VGG16's weights by
            torchvision or timm.

    Returns:
        The network: images [batch, in_channels, *image_size] to logits [batch, num_classes].

    Raises:
        ConfigError: If nothing is left of images of this size.
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
    network = _DenseHeadNetwork(backbone, (512, rows, columns), tuple(hidden), num_classes, image_size)
    if pretrained:
        tensors = read_weights("vgg16_head", pretrained) if isinstance(pretrained, str) else fetch_weights("vgg16")
        try:
            copy_backbone(backbone, tensors)
        except CovidCXRError as error:
            raise weights_error("vgg16_head", pretrained, error) from error
    return network
