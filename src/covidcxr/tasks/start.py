"""Weights that a training starts from."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from covidcxr.errors import ConfigError
from covidcxr.models import CXRModel, NetworkModel
from covidcxr.networks import backbone_of

__all__ = ["start_from"]


def start_from(model: NetworkModel, saved: CXRModel) -> None:
    """Copy a saved model's weights into a new one.

    From the same network all is copied, but for an answering layer of another shape (other classes). From a
    segmenter with the encoder `tu-NAME`, a classifier `timm:NAME` gets the encoder.

    Raises:
        ConfigError: If the networks do not fit.
    """
    if not isinstance(saved, NetworkModel):
        raise ConfigError("init_from names an ensemble: start from one of its members, FOLDER/members/NAME.")
    own, given = model.network.state_dict(), saved.network.state_dict()
    encoder = f"tu-{model.config.network.removeprefix('timm:')}"
    from_encoder = saved.task != model.task and saved.config.network_args.get("encoder") == encoder
    if from_encoder:
        prefix = "encoder.model."
        spelt = {name.replace(".", "_"): name for name in own}  # timm's encoders write stages_0 for stages.0
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        given = {spelt.get(name.replace(".", "_"), name): value for name, value in given.items()}
    fresh = {name for name in own if name not in given or own[name].shape != given[name].shape}
    if saved.task == model.task and saved.config.classes != model.config.classes:
        fresh |= _answer_tensors(model.network)  # the same shape may well mean other classes, or another order
    if saved.task != model.task:
        fits = from_encoder and all(name in own and name not in fresh for name in given)
    else:
        fits = given.keys() == own.keys() and not fresh & _backbone_tensors(model.network)
    if not fits:
        raise ConfigError(
            f"init_from needs a saved model of the same network, or a segmenter whose encoder is the classifier's "
            f"network: it has {saved.config.network!r} with {saved.config.network_args}, this one "
            f"{model.config.network!r} with {model.config.network_args}."
        )
    model.network.load_state_dict({**own, **{name: value for name, value in given.items() if name not in fresh}})
    if fresh:
        rank_zero_info(f"Started from {saved.config.network}; these tensors are fresh: {', '.join(sorted(fresh))}.")


def _answer_tensors(network: nn.Module) -> set[str]:
    """Name the tensors that make the answer: smp's last layer, else all beside the backbone."""
    outside = set(network.state_dict()) - _backbone_tensors(network)
    return {name for name in outside if name.startswith("segmentation_head.")} or outside


def _backbone_tensors(network: nn.Module) -> set[str]:
    inside = {id(tensor) for part in backbone_of(network) for tensor in (*part.parameters(), *part.buffers())}
    named = (*network.named_parameters(), *network.named_buffers())
    return {name for name, tensor in named if id(tensor) in inside}
