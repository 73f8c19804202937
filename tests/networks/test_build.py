"""Networks built without torch's compiler, which is there when it is wanted."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError
from covidcxr.networks.build import FusedNetwork, build_network, weights_follow

ANSWER = """
import sys, torch
import numpy as np
from covidcxr import Pipeline
from covidcxr.networks.compiler import compiler_on_demand

pipeline = Pipeline.from_pretrained("mini")
pipeline(np.zeros((64, 64), np.uint8))
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()

seen = []

with compiler_on_demand():
    @torch.compiler.disable
    def hidden(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

    @torch.compiler.disable(recursive=False)
    def hidden_too(x):
        return x + 1

assert hidden(1) == hidden_too(1) == 2
assert "torch._dynamo" not in sys.modules
compiled = torch.compile(lambda x: hidden_too(hidden(x)) * 2, backend="eager")
assert compiled(torch.ones(1)).item() == 6
assert seen == [False, False]
assert "torch._dynamo" in sys.modules

import torchvision
assert torchvision.ops.roi_align(torch.rand(1, 1, 8, 8), torch.tensor([[0, 0, 0, 4, 4.0]]), 2).shape == (1, 1, 2, 2)
with compiler_on_demand():
    assert torch._dynamo is sys.modules["torch._dynamo"]
"""
WEIGHTS = """
import hashlib, sys, torch
{first}
from covidcxr.config import ModelConfig
from covidcxr.networks.build import build_network

torch.manual_seed(0)
lungs = ModelConfig("segmentation", "smp:fpn", ("lung",), "binary", {{"encoder": "tu-mobilenetv3_small_050"}})
labels = ModelConfig("classification", "timm:mobilenetv3_small_050", ("a", "b"))
digest = hashlib.sha256()
for config in (lungs, labels):
    for tensor in build_network(config).state_dict().values():
        digest.update(tensor.numpy().tobytes())
print("torch._dynamo" in sys.modules, digest.hexdigest(), torch.rand(1).item())
"""
ATTRIBUTE = """
import sys, torch
from covidcxr.networks.compiler import compiler_on_demand

with compiler_on_demand():
    import torch._dynamo as kept
    from torch._dynamo.utils import is_compile_supported
    assert "torch._dynamo.eval_frame" not in sys.modules
assert isinstance(is_compile_supported("cpu"), bool)
assert kept.config is sys.modules["torch._dynamo"].config
"""
MODULE = """
import torch
from covidcxr.networks.compiler import compiler_on_demand

with compiler_on_demand():
    hidden = torch.compiler.disable(torch.nn.ReLU())
assert isinstance(hidden, torch.nn.Module)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_image_needs_no_compiler_and_who_wants_it_has_it() -> None:
    run(ANSWER)


@pytest.mark.slow
@pytest.mark.parametrize("code", [ATTRIBUTE, MODULE])
def test_whatever_else_is_asked_loads_it(code: str) -> None:
    run(code)


@pytest.mark.slow
def test_fresh_weights_are_the_same_with_it() -> None:
    without, seen = (run(WEIGHTS.format(first=first)).split() for first in ("", "import torch._dynamo"))
    assert (without[0], seen[0]) == ("False", "True")
    assert without[1:] == seen[1:]


def test_nothing_is_drawn_for_weights_that_follow() -> None:
    config = ModelConfig("classification", "timm:mobilenetv3_small_050", ("a", "b"))
    drawn = torch.random.get_rng_state()
    with weights_follow(10_000_000):
        filled = build_network(config)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    other = build_network(config)
    filled.load_state_dict(other.state_dict())
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(filled.eval()(image), other.eval()(image))
    with pytest.raises(ConfigError, match="larger than the weights"), weights_follow(1000):
        build_network(config)


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
