"""Several processes give what one would: each image counts once, rows come together, losses weigh alike."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from covidcxr.errors import ProcessLostError

__all__ = ["Handover", "Places", "explain_lost", "gather_rows", "share_losses"]

_LOST = re.compile(
    "connection (was |was likely )?(closed|reset|refused)|broken pipe|got 0 bytes|timed out waiting"
    "|remote process exited|communicator was aborted|operation timeout",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say, beside much else, when a process is no longer there."""

Placed = tuple[int, dict[str, Any]]


@contextmanager
def explain_lost(trainer: Trainer) -> Iterator[None]:
    """Say in one message that another process of a training has ended, whatever the library of connections says.

    Args:
        trainer: Runs the training.

    Yields:
        While it runs.

    Raises:
        ProcessLostError: If another process is no longer there.
    """
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1 or not _LOST.search(str(error)):
            raise
        raise ProcessLostError(
            f"Another of the {trainer.world_size} processes of this training has ended or does not answer, so this one "
            f"({trainer.global_rank}) ends too. If it said why, that stands above; a process that was killed says "
            f"nothing: look whether the memory was full. Given again, a command with --ckpt_path last goes on after "
            f"the last finished epoch."
        ) from error


class Places:
    """Numbers the images of a stage across processes, by their places in the data set.

    Under DDP, a `DistributedSampler` deals images out in turn, and repeats the first ones until every process has as
    many. A repeat has a place behind the last image.

    Args:
        trainer: Knows the processes; None = one process.
        loader: The loader of the stage.

    Attributes:
        known: Whether the sampler says which images are repeats.

    Example:
        ```python
        from torch.utils.data import DataLoader, DistributedSampler

        from covidcxr.tasks.processes import Places

        images = list("abc")
        sampler = DistributedSampler(images, num_replicas=2, rank=1, shuffle=False)
        places = Places(None, DataLoader(images, sampler=sampler))
        assert [places.is_repeat(place) for place in places.take(2)] == [False, True]
        ```
    """

    def __init__(self, trainer: Trainer | None, loader: object) -> None:
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        self.known = isinstance(sampler, DistributedSampler)
        self._count = math.inf
        self._step, self._first = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        if isinstance(sampler, DistributedSampler):
            self._count = len(sampler.dataset)  # type: ignore[arg-type]  # torch's own code needs its length too
            self._step, self._first = sampler.num_replicas, sampler.rank
        self._taken = 0

    def take(self, count: int) -> list[int]:
        """Number the next images of this process.

        Args:
            count: How many.

        Returns:
            Their places.
        """
        start, self._taken = self._taken, self._taken + count
        return [self._first + number * self._step for number in range(start, self._taken)]

    def is_repeat(self, place: int) -> bool:
        """Tell whether an image was handed out before, to another process.

        Args:
            place: From `take`.

        Returns:
            True if it must not be counted again.
        """
        return place >= self._count


def gather_rows(rows: Sequence[Placed], world_size: int, *, unique: bool) -> list[Placed]:
    """Bring the rows of all processes together, in the order of the data set.

    Args:
        rows: Place and row of each image that this process scored.
        world_size: Number of processes.
        unique: Keep one row of each `image_id`, for samplers that do not say which images they repeat.

    Returns:
        The rows of all.
    """
    if world_size == 1:
        return list(rows)
    parts: list[Sequence[Placed]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, rows)
    together = sorted((placed for part in parts for placed in part), key=lambda placed: placed[0])
    if unique:
        together = list({row["image_id"]: (place, row) for place, row in together}.values())
    return together


def share_losses(
    losses: Mapping[str, tuple[Tensor | None, int]],
    parameters: Iterable[nn.Parameter],
    world_size: int,
    add_up: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Weigh losses so that what is known counts the same, whichever process has it.

    DDP takes the mean of the gradients of all processes, and waits for each of them. So a process whose batch tells
    less weighs less, and one whose batch tells nothing takes part with gradients of 0.

    Args:
        losses: By name, the mean over what is known in the batch of this process (None = nothing is), and of how much.
        parameters: What is trained.
        world_size: Number of processes.
        add_up: Adds a tensor up over all processes.

    Returns:
        By name, losses whose values are the means over all processes, and whose gradients are those of this process.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    nothing = torch.stack([parameter.sum() for parameter in trained]).sum() * 0.0
    own = [
        torch.stack(
            [
                nothing.detach().float() if loss is None else loss.detach().float() * known,
                nothing.detach().float() + known,
            ]
        )
        for loss, known in losses.values()
    ]
    sums = add_up(torch.stack(own)).tolist()
    lacking = any(loss is None for loss, _ in losses.values())
    shared: dict[str, Tensor] = {}
    for (name, (loss, known)), (total, count) in zip(losses.items(), sums, strict=True):
        if not count:
            continue
        weighed = nothing if loss is None else loss * (known * world_size / count)
        if lacking:
            weighed = weighed + nothing  # every parameter gets a gradient, or DDP waits for it for ever
        shared[name] = weighed + (total / count - weighed).detach()
    return shared or {next(iter(losses)): nothing}


class Handover:
    """Brings plain data back from a process that Lightning started by spawn or fork.

    Such processes ("ddp_spawn", "ddp_fork", "ddp_notebook") end with their stage, and Lightning brings back weights
    and logged scores only.

    Example:
        ```python
        from covidcxr.tasks.processes import Handover

        handover = Handover()
        assert handover.take() is None  # nothing was sent
        ```
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._path = Path(tempfile.gettempdir()) / f"covidcxr-{uuid4().hex}.json"

    def send(self, trainer: Trainer, value: object) -> None:
        """Leave data for the process that started this one; nothing happens in any other process.

        Args:
            trainer: Runs here.
            value: Plain data, as JSON takes it.
        """
        started = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and os.getpid() != self._owner
        if started and trainer.is_global_zero:
            self._path.unlink(missing_ok=True)  # of an earlier stage, never taken
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may name patients
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(value, file)

    def take(self) -> Any:
        """Return what was left.

        Returns:
            The data; None if there is none, or it was taken.
        """
        if os.getpid() != self._owner or not self._path.is_file():
            return None
        value = json.loads(self._path.read_text(encoding="utf-8"))
        self._path.unlink()
        return value
