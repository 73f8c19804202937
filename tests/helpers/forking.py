"""Processes that start fast: forks of a server that has imported torch and run nothing yet.

A plain fork of the test's own process fails where an earlier test has started the threads of autograd.
"""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing import set_sharing_strategy


class ForkServerStrategy(DDPStrategy):
    """DDP in forks of the server."""

    def __init__(self) -> None:
        super().__init__(start_method="forkserver")

    def setup_environment(self) -> None:
        """Take a copy of the weights, which arrive in shared memory; Lightning does so after a spawn only."""
        assert self.lightning_module is not None
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            tensor.data = tensor.data.clone()
        super().setup_environment()


def fork_server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "covidcxr.serve.server"])
    return context


def several(processes: int) -> dict[str, Any]:
    """Settings of a Trainer that runs in so many processes of this machine.

    Args:
        processes: How many; with 1, it runs in the test's own process.
    """
    if processes == 1:
        return {}
    fork_server()
    set_sharing_strategy("file_system")  # the other way is an open file a tensor, and a server takes 256
    return {"devices": processes, "strategy": ForkServerStrategy()}
