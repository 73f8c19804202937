"""What speaks for a class, place by place, as the network sees the image.

A method is a function from an `Attribution` to heat [batch, height, width] at the network's size; it may be negative
where something speaks against the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from covidcxr import aliases
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.models import ClassificationModel

__all__ = ["METHODS", "Attribution", "find_method", "log_odds", "smooth", "as_maps", "recorded"]

__getattr__ = partial(aliases.find, __name__)

_MOST_PREFIX = 16
"""Class, distillation and register tokens that a transformer may put before those of the image."""


def _named_layers(network: nn.Module) -> list[str]:
    """Name the last layer of each stage where timm built the network."""
    for name, module in network.named_modules():
        stages = getattr(module, "feature_info", None)
        if stages:
            inside = dict(module.named_modules())  # some list layers that they have not
            layers = dict.fromkeys(stage.get("module") for stage in stages)
            return [f"{name}.{layer}" if name else layer for layer in layers if layer and layer in inside]
    return []


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers while the network runs.

    Args:
        network: Is as before afterwards.
        names: The layers; none = all.

    Yields:
        A list that fills with the outputs, in the order in which they are made.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, given: Any, made: Any) -> None:
        if isinstance(made, Tensor) and made.is_floating_point():
            outputs.append(made)

    layers = [network.get_submodule(name) for name in names] if names else list(network.modules())
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def as_maps(
    output: Float[Tensor, "batch ..."], size: tuple[int, int], prefix: int = 0
) -> Float[Tensor, "batch channels rows columns"] | None:
    """Write the output of a layer as maps of its features over the image.

    Convolutions give [batch, channels, rows, columns], Swin transformers [batch, rows, columns, channels], other
    transformers tokens [batch, tokens, channels], those of the image last.

    Args:
        output: Of any layer.
        size: Height and width of what the network saw: maps have its shape.
        prefix: Number of tokens before those of the image, as the network says. Where that leaves no grid of the
            image's shape, the smallest number that does counts.

    Returns:
        The maps, of more than one place; None where the output is no map.
    """
    fits = partial(_has_shape, size=size)
    if output.ndim == 4:
        if fits(*output.shape[2:]):
            return output
        return output.permute(0, 3, 1, 2) if fits(*output.shape[1:3]) else None
    if output.ndim != 3:
        return None
    for skipped in dict.fromkeys((prefix, *range(_MOST_PREFIX + 1))):
        tokens = output.shape[1] - skipped
        rows = round((max(tokens, 0) * size[0] / size[1]) ** 0.5)
        for count in (rows, rows + 1, rows - 1):
            if count > 0 and tokens % count == 0 and fits(count, tokens // count):
                channels = output[:, skipped:].transpose(1, 2)
                return channels.reshape(*channels.shape[:2], count, tokens // count)
    return None


def _has_shape(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Whether a grid of more than one place may be what strides left of an image: rounded up or down to whole rows."""
    return rows * columns > 1 and abs(rows - columns * size[0] / size[1]) <= (0 if size[0] == size[1] else 1)


_STEPS = 32
"""Steps of integrated gradients: on the way from the baseline to the image."""

_WINDOWS = 8
"""Windows of occlusion along the shorter side; each overlaps the next by half."""

_BLUR = 0.02
"""Standard deviation by which maps of single pixels are smoothed, as a fraction of the longer side."""


@dataclass(frozen=True)
class Attribution:
    """What a method explains: why images look like a class to a model.

    Attributes:
        model: The classifier, in evaluation mode.
        inputs: What its network sees; normalised.
        baseline: The same without the image: every image's mean grey wherever the model sees the image.
        targets: The index of the class to explain, one an image.

    Example:
        ```python
        import torch
        from covidcxr import ClassificationModel
        from covidcxr.explain.methods import Attribution, find_method

        model = ClassificationModel.from_pretrained("mini")
        inputs = model.preprocess(torch.rand(1, 1, 64, 64), torch.ones(1, 1, 64, 64))
        heat = find_method("gradcam")(Attribution(model, inputs, torch.zeros_like(inputs), torch.tensor([0])))
        assert heat.shape == inputs[:, 0].shape
        ```
    """

    model: ClassificationModel
    inputs: Float[Tensor, "batch channels height width"]
    baseline: Float[Tensor, "batch channels height width"]
    targets: Int[Tensor, " batch"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.inputs.shape[-2], self.inputs.shape[-1]

    def score(self, inputs: Tensor, targets: Tensor) -> Float[Tensor, " batch"]:
        """Compute the log odds of classes.

        Args:
            inputs: What the network sees, as `inputs`.
            targets: The index of a class, one an image.

        Returns:
            The log odds.

        Raises:
            ConfigError: If gradients are wanted and the network has none.
        """
        odds = log_odds(self.model, self.model.network(inputs), targets)
        if inputs.requires_grad and not odds.requires_grad:
            raise ConfigError(
                f"{self.model.config.network!r} has no gradients to explain it by: use method='occlusion'."
            )
        return odds


def log_odds(
    model: ClassificationModel, logits: Float[Tensor, "batch outputs"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute log p / (1 - p) of a class an image, without the temperature.

    Of two classes, and of findings, this is the logit. Of several exclusive classes it counts what speaks for the
    class and not for the others, and, like the probability, does not change when all logits rise alike.

    Args:
        model: Its config says what the logits mean.
        logits: Of its network.
        targets: The index of a class, one an image.

    Returns:
        The log odds.
    """
    logits = logits.float()
    if model.config.mode == "binary":
        return torch.where(targets == 1, logits[:, 0], -logits[:, 0])
    own = logits.gather(1, targets[:, None])
    if model.config.mode == "multilabel":
        return own[:, 0]
    return own[:, 0] - logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1)


def _cam(attribution: Attribution, *, pooled: bool) -> Float[Tensor, "batch height width"]:
    """Weigh the features of the last layer that has places by their gradients."""
    network, size = attribution.model.network, attribution.size
    prefix, inputs = _prefix(network), attribution.inputs.detach().requires_grad_()
    layers: list[tuple[Tensor, Tensor]] = []  # maps and their gradients, the last layer first
    for names in (_named_layers(network), []):
        with recorded(network, names) as outputs:
            score = attribution.score(inputs, attribution.targets).sum()
        outputs = [maps for maps in outputs if maps.requires_grad and as_maps(maps, size, prefix) is not None]
        slopes: Sequence[Tensor | None] = torch.autograd.grad(score, outputs, allow_unused=True) if outputs else ()
        for output, slope in zip(reversed(outputs), reversed(slopes), strict=True):
            slope = torch.zeros_like(output) if slope is None else slope
            layers.append((cast(Tensor, as_maps(output, size, prefix)), cast(Tensor, as_maps(slope, size, prefix))))
            # Where the class token alone makes the logits, the other tokens of the last block have no gradients: the
            # last layer where they have is the one to show.
            if bool(layers[-1][1].any()):
                return _weighted(*layers[-1], size, pooled)
    if not layers:
        name = attribution.model.config.network
        raise ConfigError(f"{name!r} has no layer whose output is a map of it: use method='occlusion'.")
    return _weighted(*layers[0], size, pooled)  # logits that depend on no place


def _weighted(maps: Tensor, weights: Tensor, size: tuple[int, int], pooled: bool) -> Tensor:
    weights = weights.mean((2, 3), keepdim=True) if pooled else weights
    heat = (weights * maps).detach().float().sum(1, keepdim=True)
    return F.interpolate(heat, size, mode="bilinear", align_corners=False)[:, 0]


def gradcam(attribution: Attribution) -> Float[Tensor, "batch height width"]:
    """Weigh the features of the last layer with places by their mean gradients (Grad-CAM, Selvaraju 2017).

    Args:
        attribution: What is explained.

    Returns:
        Heat at the network's size.
    """
    return _cam(attribution, pooled=True)


def hirescam(attribution: Attribution) -> Float[Tensor, "batch height width"]:
    """Weigh the features by the gradient at each place (HiResCAM, Draelos and Carin 2020).

    Where features are averaged before the last layer it is the same as Grad-CAM; where they are flattened, it keeps the
    place, which Grad-CAM loses.

    Args:
        attribution: What is explained.

    Returns:
        Heat at the network's size.
    """
    return _cam(attribution, pooled=False)


def integrated_gradients(attribution: Attribution) -> Float[Tensor, "batch height width"]:
    """Sum the gradients on the way from the baseline to the image (Sundararajan 2017), smoothed a little.

    Args:
        attribution: What is explained.

    Returns:
        Heat at the network's size.
    """
    method = _captum().IntegratedGradients(attribution.score)
    heat = method.attribute(
        attribution.inputs.detach().clone(),
        baselines=attribution.baseline,
        additional_forward_args=attribution.targets,
        n_steps=_STEPS,
        internal_batch_size=max(len(attribution.inputs), 16),
    )
    return smooth(heat.detach().float().sum(1), _BLUR)


def occlusion(attribution: Attribution) -> Float[Tensor, "batch height width"]:
    """Measure how much the log odds fall when a window is covered (Zeiler and Fergus 2014), smoothed a little.

    Args:
        attribution: What is explained.

    Returns:
        Heat at the network's size.
    """
    side = max(2, min(attribution.size) // _WINDOWS)
    channels = attribution.inputs.shape[1]
    with torch.no_grad():
        heat = (
            _captum()
            .Occlusion(attribution.score)
            .attribute(
                attribution.inputs,
                sliding_window_shapes=(channels, side, side),
                strides=(channels, max(1, side // 2), max(1, side // 2)),
                baselines=attribution.baseline,
                additional_forward_args=attribution.targets,
                perturbations_per_eval=max(1, 16 // len(attribution.inputs)),
            )
        )
    return smooth(heat.float().mean(1), _BLUR)


METHODS: dict[str, Callable[[Attribution], Float[Tensor, "batch height width"]]] = {
    "gradcam": gradcam,
    "hirescam": hirescam,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}
"""By name. The last two need captum: `pip install "covidcxr[explain]"`."""


def find_method(name: str) -> Callable[[Attribution], Float[Tensor, "batch height width"]]:
    """Return a method by its name.

    Args:
        name: A key of `METHODS`.

    Returns:
        The function.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in METHODS:
        raise UnknownNameError(f"There is no method {name!r} to explain by. {did_you_mean(name, METHODS)}")
    return METHODS[name]


def _prefix(network: torch.nn.Module) -> int:
    """Return how many tokens timm says come before those of the image."""
    counts = (getattr(module, "num_prefix_tokens", None) for module in network.modules())
    return next((count for count in counts if isinstance(count, int)), 0)


def smooth(maps: Float[Tensor, "batch height width"], fraction: float) -> Float[Tensor, "batch height width"]:
    """Blur maps with a Gaussian; beyond the border the outermost pixels repeat.

    Args:
        maps: Any values.
        fraction: Standard deviation as a fraction of the longer side.

    Returns:
        The blurred maps.
    """
    sigma = fraction * max(maps.shape[-2:])
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-((torch.arange(-reach, reach + 1, device=maps.device) / max(sigma, 1e-6)) ** 2) / 2)
    weights = (weights / weights.sum()).to(maps.dtype)
    wide = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, weights[None, None, :, None]), weights[None, None, None])[:, 0]


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ConfigError(
            "Integrated gradients and occlusion are captum's, which is not installed: "
            'pip install "covidcxr[explain]", or use method="gradcam".'
        ) from error
    return cast(Any, captum.attr)
