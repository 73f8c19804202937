"""From films and a classifier to heat maps at the films' own sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.explain.explanation import Explanation
from covidcxr.explain.methods import Question, find_method
from covidcxr.io.image import read_image
from covidcxr.models import ClassificationModel, Classifier, EnsembleModel
from covidcxr.models.films import fit_films
from covidcxr.transforms.geometry import LUNGS_OF_REGION, apply_region, fit_image, unfit_map
from covidcxr.transforms.preprocess import Preprocess
from covidcxr.types import ImageLike

__all__ = ["Lungs", "evaluating", "explain", "explain_many", "seen_by"]

Film: TypeAlias = Float[np.ndarray, "_ _"]  # films of one call may have many sizes
Mask: TypeAlias = Bool[np.ndarray, "_ _"]
Lungs: TypeAlias = Mask | Mapping[str, Mask]
"""The lungs of a film at its own size: one mask, or those that there are by mask class, of which each model takes the
one that its region means."""


def explain(
    model: Classifier,
    image: ImageLike,
    lung_mask: Lungs | None = None,
    *,
    target: str | None = None,
    method: str = "gradcam",
) -> Explanation:
    """Show what on a film speaks for a class, in the eyes of a classifier.

    The map is of the log odds of the class. That of an ensemble is the mean of its members' maps, each scaled to 1,
    weighted as their votes are. The model is left as it was.

    Args:
        model: A classification model or an ensemble; is asked where it lies and in evaluation mode.
        image: The film: whatever `read_image` reads.
        lung_mask: Its lungs; needed where the model `needs_lungs`.
        target: The class; None = the most probable one.
        method: "gradcam", "hirescam", "integrated_gradients" or "occlusion"; the last two need the extra `explain`.

    Raises:
        ConfigError: If the lungs are missing or of another size, the network has no layer with places ("gradcam"), or
            captum is not installed.
        UnknownNameError: If there is no such class or method.
        ImageReadError: If the film cannot be read.
    """
    return explain_many(model, [image], None if lung_mask is None else [lung_mask], target=target, method=method)[0]


def explain_many(
    model: Classifier,
    images: Sequence[ImageLike],
    lung_masks: Sequence[Lungs] | None = None,
    *,
    target: str | Sequence[str | None] | None = None,
    method: str = "gradcam",
    batch_size: int = 8,
) -> list[Explanation]:
    """Explain films of any sizes, several at a time; see `explain`.

    Args:
        model: The classifier.
        images: The films.
        lung_masks: The lungs of each.
        target: One class for all, or one a film; None = the most probable one.
        method: As of `explain`.
        batch_size: Films a batch.

    Returns:
        One explanation a film, in their order.

    Raises:
        ConfigError: As `explain` does, or if there is not one mask or target a film.
        UnknownNameError: If there is no such class or method.
        ImageReadError: If a film cannot be read.
    """
    find_method(method)
    targets = [target] * len(images) if target is None or isinstance(target, str) else list(target)
    lungs: list[Lungs] = [{} for _ in images] if lung_masks is None else list(lung_masks)
    if not len(images) == len(lungs) == len(targets):
        raise ConfigError(f"Give one lung mask and one target a film: {len(images)}, {len(lungs)}, {len(targets)}.")
    for name in targets:
        if name is not None and name not in model.config.classes:
            raise UnknownNameError(f"The model knows no class {name!r}. {did_you_mean(name, model.config.classes)}")
    found: list[Explanation] = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        films = [read_image(image) for image in images[part]]
        masks = [_by_class(mask, film) for mask, film in zip(lungs[part], films, strict=True)]
        found += _explain(model, films, masks, targets[part], method)
    return found


def _explain(
    model: Classifier,
    films: Sequence[Film],
    masks: Sequence[Mapping[str, Mask]],
    targets: Sequence[str | None],
    method: str,
) -> Iterator[Explanation]:
    classes = model.config.classes
    shown = [fit_films(member, films, masks) for member in model.members]
    answers = [member.predict(*given) for member, given in zip(model.members, shown, strict=True)]
    chances = model.combine(answers).cpu()
    places = torch.tensor(
        [int(row.argmax()) if name is None else classes.index(name) for row, name in zip(chances, targets, strict=True)]
    )
    weights = list(model.config.members.values()) if isinstance(model, EnsembleModel) else [1.0]
    heats = [np.zeros(film.shape, np.float32) for film in films]
    for member, weight, (image, lungs) in zip(model.members, weights, shown, strict=True):
        sizes = [(film.shape[0], film.shape[1]) for film in films]
        for heat, own in zip(heats, _heat_of(member, image, lungs, places, sizes, method), strict=True):
            heat += np.float32(weight) * _scaled(own)
    for heat, place, row in zip(heats, places.tolist(), chances.tolist(), strict=True):
        yield Explanation(_scaled(heat), classes[place], method, row[place])


def _heat_of(
    model: ClassificationModel,
    image: Tensor,
    lungs: Tensor | None,
    targets: Int[Tensor, " batch"],
    sizes: Sequence[tuple[int, int]],
    method: str,
) -> Iterator[Film]:
    """Yield one network's map of each film, from 0 up, at the film's own size."""
    settings = model.config.preprocess
    seen = seen_by(model, lungs, sizes).to(image.device)
    with evaluating(model), torch.enable_grad():
        sight = model.preprocess(image, lungs).detach()
        question = Question(model, sight, _without_film(model, sight, seen), targets.to(image.device))
        heat = find_method(method)(question).clamp_min(0)[:, None]
        heat = _move_back(model, image, lungs, heat) * seen
    for own, place, size in zip(heat.cpu(), seen.cpu(), sizes, strict=True):
        both = unfit_map(torch.stack((own, place), 1), size, settings.fit)[0]
        yield np.where(both[1] >= 0.5, both[0], 0.0).astype(np.float32)  # nothing bleeds over the edge


def seen_by(
    model: ClassificationModel, lungs: Tensor | None, sizes: Sequence[tuple[int, int]]
) -> Float[Tensor, "batch 1 height width"]:
    """Return what a model sees of films at its own size: 1 within its region of the film, 0 elsewhere and on padding.

    Args:
        model: Its preprocessing says size, fit, region and dilation.
        lungs: At the model's size, as `fit_films` returns them.
        sizes: Height and width of each film.
    """
    settings = model.config.preprocess
    white = torch.cat([fit_image(torch.ones(1, 1, *size), settings.image_size, settings.fit) for size in sizes])
    white = (white >= 0.5).float()
    return apply_region(white.to(model.mean.device), lungs, settings.region, settings.lung_dilation)


def _without_film(model: ClassificationModel, sight: Tensor, seen: Tensor) -> Tensor:
    """Replace what a network sees of the film by its mean; where it sees none, nothing changes."""
    if Preprocess(model.config.preprocess.steps).moving:
        seen = torch.ones_like(seen)  # the film fills the frame
    mean = (sight * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(seen > 0, mean, sight)


def _move_back(model: ClassificationModel, image: Tensor, lungs: Tensor | None, heat: Tensor) -> Tensor:
    """Bring maps back to where the film was before steps that move pixels: each pixel gets the mean of where it went.

    Where it went tells the step's own gradient.
    """
    settings = model.config.preprocess
    film = apply_region(image, lungs, settings.region, settings.lung_dilation)
    passed: list[tuple[Tensor, Tensor]] = []
    for step in settings.steps:
        change = Preprocess([step])
        given = film.detach().requires_grad_(bool(change.moving))
        film = change(given)
        if change.moving:
            passed.append((given, film))
    for given, made in reversed(passed):
        (sums,) = torch.autograd.grad(made, given, heat.to(made), retain_graph=True)
        (counts,) = torch.autograd.grad(made, given, torch.ones_like(made))
        heat = torch.where(counts > 1e-6, sums / counts.clamp_min(1e-6), 0.0)
    return heat


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; what of it trained before, trains again."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _by_class(lungs: Lungs, film: Film) -> Mapping[str, Mask]:
    masks = lungs if isinstance(lungs, Mapping) else dict.fromkeys(LUNGS_OF_REGION["lungs"], np.asarray(lungs))
    for mask in masks.values():
        if mask.shape != film.shape or mask.dtype != np.bool_:
            raise ConfigError(
                f"A lung mask is bool and has its film's size {film.shape}, not {mask.dtype} {mask.shape}."
            )
    return masks


def _scaled(heat: Film) -> Film:
    """Bring the strongest place to 1."""
    most = float(heat.max())
    return heat / np.float32(most) if most > 0 else heat
