"""Gradient boosting on deep features: a frozen backbone, and decision trees that are tensors."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError, PretrainedError
from covidcxr.networks import build_network
from covidcxr.networks.weights import head_tensors
from covidcxr.registry import CLASSIFICATION_NETWORKS

__all__ = ["BoostedTrees"]

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
        from covidcxr.networks.zoo.boosted import BoostedTrees

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
