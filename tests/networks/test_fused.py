"""Batch normalisation within convolutions: the same numbers, and nothing of the network itself changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.networks import build_network
from covidcxr.networks.fused import FusedNetwork

SHAPE = (1, 64, 64)


def network(name: str) -> nn.Module:
    task = "segmentation" if name.startswith("smp:") else "classification"
    args = {"encoder": "tu-tf_efficientnet_lite0"} if task == "segmentation" else {}
    config = ModelConfig(task, name, ("a", "b"), "multilabel", args, PreprocessConfig(image_size=(64, 64)))
    built = build_network(config)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones do nothing
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return built.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:resnet18"])
@torch.no_grad()
def test_it_computes_the_same_without_batch_norms(name: str) -> None:
    plain = network(name)
    before = copy.deepcopy(plain.state_dict())
    fused = FusedNetwork().of(plain, SHAPE)
    image = torch.rand(3, *SHAPE)
    assert norms(plain) > 0
    assert norms(fused) == 0
    torch.testing.assert_close(fused(image), plain(image), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "timm:mobilenetv2_050", "smp:fpn"])
@pytest.mark.parametrize("side", [64, 96])
@torch.no_grad()
def test_activations_are_cut_within_convolutions(name: str, side: int) -> None:
    plain, image = network(name), torch.rand(2, 1, side, side)
    fused = FusedNetwork().of(plain, (1, side, side))
    assert any(isinstance(part, nn.ReLU6) for part in plain.modules())
    assert not any(isinstance(part, nn.ReLU6) for part in fused.modules())
    torch.testing.assert_close(fused(image), plain(image), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_does_without_what_a_release_of_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    plain, image = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU6()).eval(), torch.rand(1, 1, 8, 8)
    fused = FusedNetwork().of(plain, (1, 8, 8))
    assert norms(fused) == 0
    torch.testing.assert_close(fused(image), plain(image))


@torch.no_grad()
def test_it_is_made_again_when_a_weight_changes() -> None:
    plain, holder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval(), FusedNetwork()
    image = torch.rand(1, 1, 8, 8)
    first = holder.of(plain, (1, 8, 8))
    assert holder.of(plain, (1, 8, 8)) is first
    plain[1].running_mean += 1
    torch.testing.assert_close(holder.of(plain, (1, 8, 8))(image), plain(image))
    plain[0] = nn.Conv2d(1, 3, 5)
    torch.testing.assert_close(holder.of(plain, (1, 8, 8))(image), plain(image))


@torch.no_grad()
def test_a_network_with_hooks_is_used_itself() -> None:
    plain, holder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval(), FusedNetwork()
    assert holder.of(plain, (1, 8, 8)) is not plain
    hook = plain[1].register_forward_hook(lambda *_: None)
    assert holder.of(plain, (1, 8, 8)) is plain
    hook.remove()
    assert holder.of(plain, (1, 8, 8)) is not plain


class Twice(nn.Module):
    """Uses what the convolution makes before it is normalised, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, 0.3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = self.first(image)
        return made + self.norm(made)


@torch.no_grad()
def test_a_network_that_would_compute_something_else_is_used_itself() -> None:
    plain = Twice().eval()
    assert FusedNetwork().of(plain, (1, 8, 8)) is plain
    assert FusedNetwork().of(nn.Conv2d(1, 1, 1).eval(), (1, 8, 8)).weight is not None


@torch.no_grad()
def test_copies_leave_it_behind() -> None:
    holder = FusedNetwork()
    holder.of(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval(), (1, 8, 8))
    assert vars(copy.deepcopy(holder)) == vars(pickle.loads(pickle.dumps(holder))) == vars(FusedNetwork())
