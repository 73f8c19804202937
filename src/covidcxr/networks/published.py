"""Networks of published systems, each built as its paper describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.networks.classification import fetch_weights, sum_first_convolution
from covidcxr.networks.weights import copy_backbone, read_weights, weights_error
from covidcxr.registry import CLASSIFICATION_NETWORKS, SEGMENTATION_NETWORKS

__all__ = ["CNN19", "ResidualUNet", "covidcnn2021", "vgg16_head"]


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


@CLASSIFICATION_NETWORKS.register("cnn19")
class CNN19(nn.Module):
    """A plain convolutional network of 19 layers: 18 convolutions and one dense layer, for any image size from 32 up.

    Song 2023 ("A design of Convolutional Neural Network model for the Diagnosis of the COVID-19") compares "a 19-layer
    CNN" with VGG19 and others. Of that text only the number of layers is known here, so the
    layers are ours: counted as VGG19's, those with weights; 3x3 convolutions with batch norm and ReLU in six stages of
    three, max pooling between the stages, and the mean over the last features before the dense layer.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of outputs.
        width: Channels of the first stage; they double until the fifth.
        dropout: Fraction of features dropped before the dense layer, in [0, 1].

    Raises:
        ConfigError: If the width is below 1.

    Example:
        ```python
        import torch
        from covidcxr.networks.published import CNN19

        network = CNN19(in_channels=1, num_classes=3, width=2).eval()
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
        ```
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 16, dropout: float = 0.25) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"cnn19 needs a width of 1 or more, not {width}.")
        self.backbone = nn.Sequential()
        channels = in_channels
        for stage in range(6):
            if stage:
                self.backbone.append(nn.MaxPool2d(2))
            for _ in range(3):
                made = width * 2 ** min(stage, 4)
                self.backbone.extend(_convolution(channels, made))
                channels = made
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Normalised images of 32 pixels a side or more.

        Returns:
            Logits of the classes.
        """
        return cast(Tensor, self.head(self.backbone(image).mean((2, 3))))


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a 1x1 shortcut (He 2016, arXiv:1603.05027)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(nn.BatchNorm2d(in_channels), nn.ReLU(), _conv3x3(in_channels, out_channels)),
            *(nn.BatchNorm2d(out_channels), nn.ReLU(), _conv3x3(out_channels, out_channels)),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features [batch, out_channels, height, width]."""
        return cast(Tensor, self.shortcut(features) + self.residual(features))


class _Encoder(nn.Module):
    """Returns the features of every level, the finest first."""

    def __init__(self, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = _conv3x3(in_channels, widths[0])
        self.levels = nn.ModuleList(map(_ResidualBlock, [widths[0], *widths], widths))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.levels[0](self.stem(image))]
        for level in self.levels[1:]:
            # Pooled, not by strides: oneDNN writes past its memory where a 1x1 convolution with strides has fewer
            # than 16 channels (oneDNN issue 6035).
            features.append(level(F.max_pool2d(features[-1], 2)))
        return features


_DEEPEST = 12
"""An image of the largest size is one pixel then."""


@SEGMENTATION_NETWORKS.register("residual_unet")
class ResidualUNet(nn.Module):
    """U-Net (Ronneberger 2015) of residual blocks (Zhang 2018, arXiv:1711.10684), for any image size.

    Images are padded at the right and at the bottom, by repeating their edge, to a size that can be halved often
    enough, and the logits are cropped again.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of mask classes.
        width: Channels at full size; they double at every halving. Zhang's network has 64.
        depth: How often the size is halved, in [1, 12]. Zhang's network has 3.

    Raises:
        ConfigError: If width or depth is out of range.

    Example:
        ```python
        import torch
        from covidcxr.networks.published import ResidualUNet

        network = ResidualUNet(in_channels=1, num_classes=2, width=2, depth=2)
        assert network(torch.rand(1, 1, 33, 30)).shape == (1, 2, 33, 30)
        ```
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 8, depth: int = 5) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= _DEEPEST:
            raise ConfigError(
                f"residual_unet needs a width of 1 or more and a depth of 1 to {_DEEPEST}, not {width} and {depth}."
            )
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = _Encoder(in_channels, widths)
        self.decoder = nn.ModuleList(_ResidualBlock(3 * made, made) for made in reversed(widths[:-1]))
        self.segmentation_head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1))
        self.stride = 2**depth

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Compute logits.

        Args:
            image: Normalised images of any size.

        Returns:
            Logits of the masks, at the size of the images.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        *finer, features = self.encoder(padded)
        for block, skipped in zip(self.decoder, reversed(finer), strict=True):
            features = block(torch.cat([F.interpolate(features, scale_factor=2.0), skipped], dim=1))
        return cast(Tensor, self.segmentation_head(features)[..., :height, :width])


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
