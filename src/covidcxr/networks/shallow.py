"""Shallow models on fixed features: linear ones, and boosted decision trees that are tensors.

HOG reads histograms of oriented gradients and a thumbnail; the others read what a pretrained backbone sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError, CovidCXRError, PretrainedError, UnknownNameError, did_you_mean
from covidcxr.networks import build_network
from covidcxr.networks.weights import (
    REFUSALS,
    copy_backbone,
    head_tensors,
    installed_weights,
    package_cure,
    read_weights,
    weights_error,
)
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["HOG", "BoostedTrees", "StagePool"]

_CLIP = 0.2
"""Where Lowe 2004 and Dalal 2005 cut off a normalised histogram, so that one strong edge does not silence the rest."""


@CLASSIFICATION_NETWORKS.register("hog")
class HOG(nn.Module):
    """A linear model of histograms of oriented gradients (Dalal and Triggs 2005) and of a thumbnail of the image.

    With its few thousand weights it cannot learn what a convolutional network learns of a scanner, so it is the
    baseline that a network must beat on images of a source that it has not seen. It wants strong weight decay.

    Args:
        in_channels: Channels of the input; their mean is taken.
        num_classes: Number of outputs.
        side: Height and width to which the input is averaged first, in pixels; a multiple of `cell`.
        cell: Side of the square whose gradients make one histogram, in pixels.
        orientations: Bins of a histogram, over half a turn.
        thumbnail: Height and width of the thumbnail, in pixels, a multiple of `side // cell`; 0 = none.

    Raises:
        ConfigError: If a number is out of range.

    Example:
        ```python
        import torch
        from covidcxr.networks.shallow import HOG

        network = HOG(in_channels=1, num_classes=3, side=32, cell=8, thumbnail=8).eval()
        assert network(torch.rand(2, 1, 64, 48)).shape == (2, 3)
        ```
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        side: int = 128,
        cell: int = 16,
        orientations: int = 9,
        thumbnail: int = 32,
    ) -> None:
        super().__init__()
        cells = cell > 1 and side // cell
        if not cells or side % cell or cells < 2 or orientations < 1 or thumbnail < 0 or thumbnail % cells:
            raise ConfigError(
                f"hog needs a cell of 2 or more, a side that is two cells or more and a multiple of it, orientations "
                f"of 1 or more and a thumbnail of 0 or a multiple of the number of cells in a row; not cell={cell}, "
                f"side={side}, orientations={orientations}, thumbnail={thumbnail}."
            )
        self.side, self.thumbnail = side, thumbnail
        self.backbone = _Histograms(cell, orientations)
        features = 4 * orientations * (cells - 1) ** 2 + thumbnail**2
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, num_classes))
        self.evidence = _Evidence(cells, thumbnail)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Images of any size.

        Returns:
            Logits of the classes.
        """
        grey = image.mean(1, keepdim=True)
        features = [_normalized_blocks(self.backbone(F.adaptive_avg_pool2d(grey, self.side)))]
        if self.thumbnail:
            features.append(F.adaptive_avg_pool2d(grey, self.thumbnail).flatten(1))
        norm, linear = self.head
        evidence: Tensor = self.evidence(norm(torch.cat(features, 1)), linear.weight)
        return evidence.sum((2, 3)) + cast(Tensor, linear.bias)


class _Histograms(nn.Module):
    """Of each square cell, how strong the gradients are in each direction."""

    def __init__(self, cell: int, orientations: int) -> None:
        super().__init__()
        self.cell, self.orientations = cell, orientations

    def forward(self, image: Float[Tensor, "batch 1 side side"]) -> Float[Tensor, "batch orientations rows columns"]:
        """Return the histograms."""
        wide = F.pad(image, (1, 1, 1, 1), mode="replicate")
        down = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
        right = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
        strength = (down**2 + right**2).clamp_min(1e-12).sqrt()
        turn = torch.atan2(down.detach(), right.detach()) / math.pi % 1.0
        direction = (turn * self.orientations).long() % self.orientations
        planes = [F.avg_pool2d(strength * (direction == place), self.cell) for place in range(self.orientations)]
        return torch.cat(planes, 1)


class _Evidence(nn.Module):
    """How much each place adds to each class: the terms of the linear model, summed cell by cell.

    A module of its own, with a map as its output, so that Grad-CAM has a layer whose sum over places gives the logits.
    """

    def __init__(self, cells: int, thumbnail: int) -> None:
        super().__init__()
        self.cells, self.thumbnail = cells, thumbnail

    def forward(
        self, features: Float[Tensor, "batch features"], weight: Float[Tensor, "classes features"]
    ) -> Float[Tensor, "batch classes rows columns"]:
        """Return the evidence, up to the bias."""
        spans, pixels = self.cells - 1, self.thumbnail**2
        blocks, greys = torch.split(features, [features.shape[1] - pixels, pixels], 1)
        of_blocks, of_greys = torch.split(weight, [features.shape[1] - pixels, pixels], 1)
        images, classes = len(features), len(weight)
        by_block = torch.einsum(
            "bfyx,kfyx->bkyx",
            blocks.reshape(images, -1, spans, spans),
            of_blocks.reshape(classes, -1, spans, spans),
        )
        shares = F.pad(by_block, (1, 1, 1, 1)) / 4  # a block lies on four cells
        evidence = sum(shares[..., y : y + self.cells, x : x + self.cells] for y in (0, 1) for x in (0, 1))
        if pixels:
            terms = (greys[:, None] * of_greys).view(images, classes, self.thumbnail, self.thumbnail)
            side = self.thumbnail // self.cells
            evidence = evidence + F.avg_pool2d(terms, side) * side**2
        return cast(Tensor, evidence)


def _normalized_blocks(cells: Float[Tensor, "batch orientations rows columns"]) -> Float[Tensor, "batch features"]:
    """Put each two by two cells side by side, and bring every such block to length 1 (L2-Hys: clipped, then again)."""
    blocks = torch.stack([cells[..., y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)], 1)
    blocks = F.normalize(blocks.flatten(1, 2), dim=1)
    return F.normalize(blocks.clamp_max(_CLIP), dim=1).flatten(1)


@CLASSIFICATION_NETWORKS.register("stage_pool")
class StagePool(nn.Module):
    """A linear model of the mean of each channel at some stages of a timm network.

    Train it with `pretrained_backbone: true` and `freeze_backbone: true`: then all that is learnt are a few hundred
    weights a class (a linear probe, Alain and Bengio 2016, https://arxiv.org/abs/1610.01644). That leaves little room
    for what marks a source, and generalises to new sources better than a network that is trained as a whole on few
    images. It wants weight decay.

    Args:
        in_channels: Channels of the input; pretrained weights for colour are summed for one.
        num_classes: Number of outputs.
        backbone: Name of a timm network.
        stages: Which of its stages count, 0 = the first, which halves the image; each one halves it again.
        side: Height and width to which the input is brought first, in pixels; null = as it is.
        pretrained: True for ImageNet weights that are installed (extra `imagenet`), or the path of a weights file.

    Raises:
        UnknownNameError: If timm has no such network.
        ConfigError: If it has no such stages, or `side` is too small.
        PretrainedError: If pretrained weights cannot be had.

    Example:
        ```python
        import torch
        from covidcxr.networks.shallow import StagePool

        network = StagePool(1, 3, backbone="mobilenetv3_small_050", stages=(1, 2), side=64).eval()
        assert network(torch.rand(2, 1, 80, 80)).shape == (2, 3)
        ```
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        backbone: str = "tf_efficientnet_lite0",
        stages: Sequence[int] = (2, 3, 4),
        side: int | None = None,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        if side is not None and side < 32:
            raise ConfigError(f"stage_pool needs a side of 32 pixels or more, or null, not {side!r}.")
        self.side = side
        self.backbone = _build_backbone(backbone, in_channels, stages)
        features = sum(cast(Any, self.backbone).feature_info.channels())
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, num_classes))
        if pretrained:
            _load_backbone(self.backbone, backbone, pretrained)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Images of any size.

        Returns:
            Logits of the classes.
        """
        if self.side is not None and image.shape[-2:] != (self.side, self.side):
            image = F.interpolate(image, size=(self.side, self.side), mode="bilinear", antialias=True)
        maps: list[Tensor] = self.backbone(image)
        return cast(Tensor, self.head(torch.cat([values.mean((2, 3)) for values in maps], 1)))


def _build_backbone(name: str, in_channels: int, stages: Sequence[int]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no network {name!r}. {did_you_mean(name, timm.list_models())[:300]}")
    try:
        network: nn.Module = timm.create_model(
            name, features_only=True, out_indices=tuple(stages), in_chans=in_channels
        )
    except (*REFUSALS, AssertionError) as error:
        raise ConfigError(f"timm's {name!r} has no stages {list(stages)!r}: {error}") from error
    return network


def _load_backbone(network: nn.Module, name: str, pretrained: bool | str) -> None:
    import timm

    tensors = read_weights(name, pretrained) if isinstance(pretrained, str) else installed_weights(name)
    if tensors is None:
        raise weights_error(name, True, "they are not installed", package_cure(name))
    with torch.device("meta"):
        surplus = list(timm.create_model(name).state_dict())
    try:
        copy_backbone(network, tensors, surplus=surplus)
    except CovidCXRError as error:
        raise weights_error(name, pretrained, error) from error


_DEEPEST = 10
"""Every tree takes the room of a complete one, which doubles with each level."""


@CLASSIFICATION_NETWORKS.register("boosted")
class BoostedTrees(nn.Module):
    """Boosted decision trees (Friedman 2001) on the features of a backbone that is not trained.

    The trees are complete binary trees in buffers, so they are saved and loaded as all weights are: the children of
    node n are 2n+1 (feature at or below the threshold) and 2n+2. Until `covidcxr.tasks.fit_boosting` has grown them,
    all logits are 0.

    Args:
        in_channels: Channels of the input.
        num_classes: Number of outputs; their trees are grown together, one each a stage.
        image_size: Height and width of the input.
        backbone: Any classification network; its last layer is left out.
        stages: Room for so many stages.
        depth: Room for trees so deep, in [1, 10].
        pretrained: Pretrained weights for the backbone; see `covidcxr.networks.build_network`.

    Raises:
        ConfigError: If a number is out of range, or the network does not say what its backbone is.
        UnknownNameError: If there is no such backbone.
        PretrainedError: If pretrained weights cannot be had.

    Example:
        ```python
        import torch
        from covidcxr.networks.shallow import BoostedTrees

        trees = BoostedTrees(1, 3, image_size=(32, 32), backbone="timm:mobilenetv3_small_050", stages=2, depth=1)
        assert not trees(torch.rand(2, 1, 32, 32)).any()  # no trees yet
        ```
    """

    may_be_infinite = ("threshold",)
    """Buffers in which infinity has a meaning: a node of a tree that ends above it sends everything left."""

    initial: Tensor
    feature: Tensor
    threshold: Tensor
    leaf: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        backbone: str = "timm:mobilenetv2_100",
        stages: int = 100,
        depth: int = 3,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        stages = check_whole(stages, "stages of boosted trees", 1, 100_000)
        depth = check_whole(depth, "depth of boosted trees", 1, _DEEPEST)
        channels: Any = in_channels
        preprocess = PreprocessConfig(image_size=image_size, channels=channels)
        config = ModelConfig("classification", backbone, ("no", "yes"), "binary", preprocess=preprocess)
        self.depth = depth
        self.backbone = _without_head(build_network(config, pretrained_backbone=pretrained)).requires_grad_(False)
        inner = (stages, num_classes, 2**depth - 1)
        self.register_buffer("initial", torch.zeros(num_classes))
        self.register_buffer("feature", torch.zeros(inner, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(inner))
        self.register_buffer("leaf", torch.zeros(stages, num_classes, 2**depth))
        self.backbone.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the backbone, whose batch norms keep their statistics.

        Args:
            mode: True for training mode.

        Returns:
            The network itself.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute logits.

        Args:
            image: Normalised images.

        Returns:
            Logits of the classes; 0 before trees were grown.
        """
        return self.score(self.features(image))

    def features(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Compute the input of the backbone's last layer, averaged over the image.

        Args:
            image: Normalised images.

        Returns:
            The features.
        """
        features = cast(Tensor, self.backbone(image))
        return features.flatten(2).mean(2) if features.ndim > 2 else features

    def score(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch outputs"]:
        """Sum the outputs of all trees.

        Args:
            features: What `features` returned.

        Returns:
            Logits of the classes; NaN where a feature is not finite.

        Raises:
            PretrainedError: If a tree splits on a feature that there is not.
        """
        feature, threshold, leaf = (table.flatten(0, 1) for table in (self.feature, self.threshold, self.leaf))
        features = features.to(threshold.dtype)
        if not 0 <= int(feature.min()) <= int(feature.max()) < features.shape[1]:
            raise PretrainedError(
                f"The boosted trees split on feature {int(feature.max())} of {features.shape[1]}: their weights are "
                f"damaged or of another backbone."
            )
        trees = torch.arange(len(feature), device=feature.device)
        node = trees.new_zeros(len(features), len(trees))
        for _ in range(self.depth):
            right = features.gather(1, feature[trees, node]) > threshold[trees, node]
            node = 2 * node + 1 + right.long()
        values = leaf[trees, node - feature.shape[1]]
        scores = self.initial + values.view(-1, *self.leaf.shape[:2]).sum(1)
        # A tree would send NaN to the left and go on to a finite score.
        return scores.where(features.isfinite().all(1, keepdim=True), torch.nan)

    @torch.no_grad()
    def copy_trees(self, boosting: Any) -> None:
        """Take the trees of a fitted scikit-learn `GradientBoostingClassifier`, which then gives the same scores.

        Of two outputs the second gets the trees of scikit-learn's only one. What there is room for beyond the trees
        is emptied.

        Args:
            boosting: Has no more stages, no deeper trees and as many classes as there is room for here.

        Raises:
            ConfigError: If it does not fit.
        """
        stages, columns = boosting.estimators_.shape
        outputs = self.leaf.shape[1]
        deepest = max(tree.tree_.max_depth for tree in boosting.estimators_.flat)
        if stages > len(self.leaf) or deepest > self.depth or len(boosting.classes_) != max(2, outputs):
            raise ConfigError(
                f"{stages} stages of trees {deepest} deep for {len(boosting.classes_)} classes do not fit into "
                f"{len(self.leaf)} stages, {self.depth} deep, with {outputs} output(s)."
            )
        for buffer in (self.initial, self.feature, self.threshold, self.leaf):
            buffer.zero_()
        for stage, row in enumerate(boosting.estimators_):
            for place, estimator in enumerate(row, outputs - columns):
                feature, threshold, leaf = _complete(estimator.tree_, self.depth)
                self.feature[stage, place] = torch.from_numpy(feature)
                self.threshold[stage, place] = torch.from_numpy(threshold)
                self.leaf[stage, place] = torch.from_numpy(leaf * boosting.learning_rate)
        self.initial[outputs - columns :] = torch.from_numpy(_initial_scores(boosting))


def _complete(tree: Any, depth: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """Write a tree as a complete one: from a leaf above the last level all branches lead left, to its value."""
    feature = np.zeros(2**depth - 1, np.int64)
    threshold = np.full(2**depth - 1, np.inf, np.float32)
    leaf = np.zeros(2**depth)
    branches = [(0, 0)]  # place in the complete tree, node of the given one
    while branches:
        place, node = branches.pop()
        left, right = tree.children_left[node], tree.children_right[node]
        if place >= len(feature):
            leaf[place - len(feature)] = tree.value[node, 0, 0]
        elif left < 0:
            branches.append((2 * place + 1, node))
        else:
            feature[place] = tree.feature[node]
            threshold[place] = _rounded_down(tree.threshold[node])
            branches += [(2 * place + 1, left), (2 * place + 2, right)]
    return feature, threshold, leaf


def _rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above: no float32 feature lies between the two, so no output changes."""
    near = np.float32(threshold)
    return near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))


def _initial_scores(boosting: Any) -> NDArray[np.float64]:
    """Return what is left of an image's scores without the trees, one an output."""
    image = np.zeros((1, boosting.n_features_in_), np.float32)
    trees = [np.array([tree.predict(image)[0] for tree in row]) for row in boosting.estimators_]
    scores: NDArray[np.float64] = boosting.decision_function(image).reshape(-1) - boosting.learning_rate * sum(trees)
    return scores


def _without_head(network: nn.Module) -> nn.Module:
    """Return the part of a network that gives its last features."""
    for name in ("encoder", "backbone"):
        part = getattr(network, name, None)
        if isinstance(part, nn.Module):
            return part
    for name in {tensor.rpartition(".")[0] for tensor in head_tensors(network)}:
        network.set_submodule(name, nn.Identity())
    return network
