"""Networks built without torch's compiler, which is there when it is wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from covidcxr import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.networks.build import build_network, weights_follow

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
from covidcxr import ModelConfig
from covidcxr.networks import build_network

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
