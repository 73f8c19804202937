"""The order in which images are trained on: the same in every process, and after every interruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.types import Batch

__all__ = ["EpochSampler", "ResumableLoader", "Balance", "class_weights", "positive_weights", "sampling_weights"]


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Shuffles anew in every epoch, by nothing but seed and epoch; yields (epoch, index).

    `CXRDataset` seeds its augmentation by that pair, so neither the number of workers nor an interruption changes
    what an image looks like. It is a `DistributedSampler`, so Lightning leaves it in place under DDP; every process
    takes each `num_replicas`-th image of one common order, which is continued from its start to come out even.

    Args:
        dataset: Anything with a length.
        seed: Another seed gives other orders.
        weights: One weight an image: images are then drawn with replacement, in proportion to their weights, as many in
            an epoch as there are images.
        num_replicas: Number of processes that share an epoch.
        rank: Number of this process.

    Raises:
        ConfigError: If there is not one weight from 0 up for each image.

    Example:
        ```python
        from covidcxr.data import EpochSampler

        sampler = EpochSampler(range(5), seed=1)
        assert sorted(sampler) == [(0, index) for index in range(5)]
        sampler.set_epoch(1)
        assert {epoch for epoch, _ in sampler} == {1}
        ```
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int = 0,
        weights: torch.Tensor | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # needs len only
        if weights is not None and (weights.shape != (len(dataset),) or not bool((weights >= 0).all())):
            raise ConfigError(f"weights must be {len(dataset)} numbers from 0 up, one an image.")
        self.weights = weights
        self._resumed = (0, 0)

    def resume(self, epoch: int, samples: int) -> None:
        """Leave out the first images of this process when an epoch is next run through, and only then.

        Args:
            epoch: The epoch that was interrupted.
            samples: How many images of it this process has seen.
        """
        self._resumed = (epoch, samples)

    @property
    def pending(self) -> int:
        """How many images the next run leaves out because they were seen before an interruption."""
        epoch, samples = self._resumed
        return samples if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = self._order()
        padded = [order[place % len(order)] for place in range(self.total_size)]
        mine = padded[self.rank :: self.num_replicas][self.pending :]
        self._resumed = (0, 0)
        return iter([(self.epoch, index) for index in mine])

    def _order(self) -> list[int]:
        # A mix of both: with seed + epoch, epoch 1 of seed 0 would be epoch 0 of seed 1.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        count = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is None:
            return torch.randperm(count, generator=generator).tolist()
        return torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` over an `EpochSampler` that tells how far it is, and goes on from there.

    Lightning stores `state_dict` in its checkpoints, hands it back before it resumes inside an epoch, and sets the
    epoch itself. With any other sampler (Lightning's `overfit_batches` puts one in) it is a plain `DataLoader`.

    Example:
        ```python
        from covidcxr.data import CSVDataModule

        loader = CSVDataModule("phantoms", batch_size=4).train_dataloader()
        next(iter(loader))
        assert loader.state_dict() == {"epoch": 0, "batches": 1}
        ```
    """

    _done = 0  # batches of the running epoch that were handed out; no __init__, because Lightning calls DataLoader's

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator starts with the first batch asked for. DataLoader's own iterator starts its workers at once, and
        # Lightning sets the epoch only after that.
        self._done = self.sampler.pending // self._size if isinstance(self.sampler, EpochSampler) else 0
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Tell the epoch and how many of its batches were handed out."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Args:
            state: What it returned.
        """
        unfinished = state["batches"] < len(self)
        if unfinished and isinstance(self.sampler, EpochSampler):
            self.sampler.resume(state["epoch"], state["batches"] * self._size)

    @property
    def _size(self) -> int:
        return self.batch_size or 1


Balance = Literal["none", "class", "source", "class+source"]
"""What is drawn equally often: classes, sources, or classes and within each class its sources."""


def class_weights(labels: Int[Tensor, " images"], classes: Sequence[str]) -> Float[Tensor, " classes"]:
    """Weigh classes inversely to their frequency; the mean over the images is 1.

    Args:
        labels: One class number an image; -1 = not labelled.
        classes: Names of the classes.

    Returns:
        A weight a class.

    Raises:
        DatasetError: If a class has no image.
    """
    counts = Counter(label for label in labels.tolist() if label >= 0)
    lacking = [name for place, name in enumerate(classes) if counts[place] == 0]
    if lacking or not classes:
        raise DatasetError(
            f"No training image is labelled {', '.join(lacking) or 'at all'}: classes cannot be weighted."
        )
    return torch.tensor([counts.total() / (len(classes) * counts[place]) for place in range(len(classes))])


def positive_weights(labels: Float[Tensor, "images classes"], classes: Sequence[str]) -> Float[Tensor, " classes"]:
    """Weigh findings by how many images without them there are for each image with them.

    Args:
        labels: 1, 0, or NaN where it is not known; that counts for neither side.
        classes: Names of the classes.

    Returns:
        A weight a class: 3 where three images lack it for each that shows it.

    Raises:
        DatasetError: If no image has a finding, or none is known to be without it.
    """
    with_it, without = (labels == 1).sum(0), (labels == 0).sum(0)
    lacking = [name for name, few in zip(classes, torch.minimum(with_it, without).tolist(), strict=True) if few == 0]
    if lacking or not classes:
        raise DatasetError(
            f"No training image is known to have, or none to lack, {', '.join(lacking) or 'any finding'}: classes "
            f"cannot be weighted."
        )
    return without / with_it


def sampling_weights(records: Sequence[Record], balance: Balance) -> Float64[Tensor, " images"] | None:
    """Weigh images so that the groups of `balance` are drawn equally often.

    Args:
        records: The images.
        balance: Which groups.

    Returns:
        A weight an image; None for "none".
    """
    if balance == "none":
        return None
    if balance == "class+source":
        cells = Counter((record.label, record.source) for record in records)
        sources = Counter(label for label, _ in cells)
        shares = [1 / (sources[record.label] * cells[record.label, record.source]) for record in records]
    else:
        groups = [record.label if balance == "class" else record.source for record in records]
        sizes = Counter(groups)
        shares = [1 / sizes[group] for group in groups]
    return torch.tensor(shares, dtype=torch.float64)
