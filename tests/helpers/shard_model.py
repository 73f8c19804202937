"""Trains a model that is split over two processes (FSDP2, gloo): `torchrun --nproc-per-node 2 shard_model.py OUT`.

Lightning's `fsdp` refuses the CPU, so this is torch's own `fully_shard`. Rank 0 writes the weights, joined again, and
how many numbers a process held.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from covidcxr import ClassificationModel, ModelConfig

CONFIG = ModelConfig("classification", "timm:test_resnet", ("covid19", "normal", "pneumonia"))
IMAGES, LABELS = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


def make_model() -> ClassificationModel:
    """Return the same untrained model in every process; batch norms stay as they are."""
    torch.manual_seed(0)
    # fully_shard takes no weights whose channels stand side by side, as ours do.
    return ClassificationModel(CONFIG).eval().to(memory_format=torch.contiguous_format)


def train(model: ClassificationModel, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Take three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    distributed.init_process_group("gloo")
    rank, model = distributed.get_rank(), make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    own = slice(2 * rank, 2 * rank + 2)
    train(model, IMAGES[own], LABELS[own])
    parameters = dict(model.named_parameters())
    assert all(isinstance(each, DTensor) for each in parameters.values())
    held = sum(each.to_local().numel() for each in parameters.values())
    whole = {name: each.full_tensor().detach().contiguous() for name, each in parameters.items()}
    if rank == 0:
        save_file(whole | {"held": torch.tensor(held)}, sys.argv[1])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
