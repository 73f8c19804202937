"""The layers of a network whose outputs still know where on the film they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["as_maps", "named_layers", "recorded"]

_MOST_PREFIX = 16
"""Class, distillation and register tokens that a transformer may put before those of the film."""


def named_layers(network: nn.Module) -> list[str]:
    """Name the last layer of each stage, in order, where timm built the network; else none.

    timm's networks tell them themselves (`feature_info`), also inside a network of ours.
    """
    for name, module in network.named_modules():
        stages = getattr(module, "feature_info", None)
        if stages:
            inside = dict(module.named_modules())  # some tell of layers that they have not
            layers = dict.fromkeys(stage.get("module") for stage in stages)
            return [f"{name}.{layer}" if name else layer for layer in layers if layer and layer in inside]
    return []


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers while the network runs, in the order in which they are made.

    Args:
        network: Is as before afterwards.
        names: The layers; none = all.
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
    """Write the output of a layer as maps of its features over the film.

    Convolutions give [batch, channels, rows, columns], Swin transformers [batch, rows, columns, channels], other
    transformers tokens [batch, tokens, channels], those of the film last.

    Args:
        output: Of any layer.
        size: Height and width of what the network saw: maps have its shape.
        prefix: Number of tokens before those of the film, as the network tells it. Where that leaves no grid of the
            film's shape, the smallest number that does counts.

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
    """Whether a grid of more than one place may be what strides left of a film: rounded up or down to whole rows."""
    return rows * columns > 1 and abs(rows - columns * size[0] / size[1]) <= (0 if size[0] == size[1] else 1)
