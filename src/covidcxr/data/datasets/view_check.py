"""What a gate learns from: images as they are, turned and inverted, and what is no frontal chest radiograph."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from covidcxr import aliases
from covidcxr.config.checks import check_whole
from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import find_missing
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError
from covidcxr.phantom import LABELS, OTHERS, VIEWS, draw_other, draw_phantom
from covidcxr.registry import DATASETS
from covidcxr.transforms.pyramid import CHILD, NOT_A_FRONTAL_IMAGE, ORIENTATIONS
from covidcxr.types import SplitName

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "GateDataModule",
]

_DRAWN_SIZES = ((160, 160), (160, 192), (192, 160), (128, 192))
_CORRUPTED = ("cut-out", "shuffled")
_SPLITTING = ("fractions", "fold", "folds", "hold_out_source", "split_seed")


@DATASETS.register("gate")
class GateDataModule(CXRDataModule):
    """The images of another data set in all eight orientations, among pictures that are no frontal radiograph.

    The latter are drawn (`covidcxr.phantom.draw_other`), or real images that are corrupted: a small part cut out, or
    tiles shuffled, so that neither "it was drawn" nor "it has an image's grain" tells anything. Drawn chests stand
    among the images for the same reason. Nothing is written: pictures are made when they are read. The source of a
    picture is its image's, or the kind of what is no image.

    Args:
        root: Folder of the images.
        films: The data set that has the images: its name and settings, `{name: csv, table: manifest.csv, ...}`. It
            splits them, by the settings of splitting that are given here.
        child_label: Label of those images that show children: they become a class "child" of their own, as they are.
        drawn: Number of drawn pictures of each kind, and of drawn chests; split by number.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong.
        UnknownNameError: If there is no such data set.

    Example:
        ```python
        from covidcxr.data import GateDataModule

        data = GateDataModule("phantoms", films={"name": "csv"}, drawn=10, image_size=(64, 64))
        assert data.classes[-1] == "not-a-frontal-film" and len(data.classes) == 9
        ```
    """

    classes = (
        *("frontal", "turned-90", "turned-180", "turned-270"),
        *("inverted", "inverted-turned-90", "inverted-turned-180", "inverted-turned-270"),
        "not-a-frontal-film",
    )
    layout = "the images of the data set that the setting `films` names"
    caveats = ("CT slices, lateral images and other body parts are drawn: a score on them does not tell of real ones.",)

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        films: Mapping[str, Any] | None = None,
        child_label: str | None = None,
        drawn: int = 300,
        **base: Unpack[DataSettings],
    ) -> None:
        super().__init__(root, **base)
        drawn = check_whole(drawn, "drawn", 10)
        settings = {"name": "csv", **(films or {})}
        self.drawn = drawn
        self.child_label = child_label
        self.settings = {"films": settings, "drawn": drawn}
        if child_label is not None:
            self.settings["child_label"] = child_label
            self.set_classes((*ORIENTATIONS, CHILD, NOT_A_FRONTAL_IMAGE))
        if self.prepared is not None:
            return
        if not self.root.is_dir():
            raise self.not_found(self.root)
        arguments = {key: value for key, value in settings.items() if key != "name"}
        arguments |= {key: value for key, value in base.items() if key in _SPLITTING}
        try:
            self.images: CXRDataModule = DATASETS.get(settings["name"])(self.root, augment=None, **arguments)
        except TypeError as error:
            raise ConfigError(f"films ({settings['name']}) refuses its settings: {error}.") from error

    def read_records(self) -> Iterator[Record]:
        """Return every adult's image in eight orientations and corrupted in two ways, children, and drawings."""
        for image in self.images.records:
            plain = replace(image, mask_paths={}, findings={})
            if self.child_label is not None and image.label == self.child_label:
                yield replace(plain, label=CHILD, image_id=f"{CHILD}/{image.image_id}")
                continue
            for name in ORIENTATIONS:
                yield replace(plain, label=name, image_id=f"{name}/{image.image_id}")
            for way in _CORRUPTED:
                yield replace(plain, label=NOT_A_FRONTAL_IMAGE, source=way, image_id=f"{way}/{image.image_id}")
        for number in range(self.drawn):
            split, path = self._split(number), Path("drawn", f"{number:05d}")
            for name in ORIENTATIONS:
                chest = f"{path.parent}/chest-{path.name}"
                yield Record(path, name, chest, "drawn chest", split, image_id=f"{name}/{chest}")
            for kind in OTHERS:
                picture = f"{kind}/{path}"
                yield Record(path, NOT_A_FRONTAL_IMAGE, picture, kind, split, image_id=picture)

    def load_image(self, record: Record) -> Float[np.ndarray, "height width"]:
        """Open or draw a picture.

        Args:
            record: Which one.

        Returns:
            Its grey values, in [0, 1].

        Raises:
            ImageReadError: If an image cannot be read.
        """
        name, _, image_id = record.image_id.partition("/")
        seed = zlib.crc32(record.image_id.encode())  # of what is random: the same on every machine
        if name in OTHERS:
            return draw_other(seed, name, size=_DRAWN_SIZES[seed % len(_DRAWN_SIZES)])
        if record.source == "drawn chest":
            seed = zlib.crc32(image_id.encode())
            label, view = LABELS[seed % len(LABELS)], VIEWS[seed // 3 % len(VIEWS)]
            image = draw_phantom(seed, label=label, view=view, size=_DRAWN_SIZES[seed // 6 % len(_DRAWN_SIZES)]).image
        else:
            image = self.images.load_image(replace(record, image_id=image_id))
        if name == "cut-out":
            return _cut_out(image, np.random.default_rng(seed))
        if name == "shuffled":
            return _shuffle_tiles(image, np.random.default_rng(seed))
        return image if name == CHILD else ORIENTATIONS[name].lay(image)

    def split_records(self, records: list[Record]) -> list[Record]:
        """Keep the splits of the images' data set, and those that drawn pictures have by their numbers.

        Args:
            records: The pictures.

        Returns:
            The pictures, each with its split.
        """
        return records if self.prepared is None else super().split_records(records)

    def find_missing(self, records: Iterable[Record]) -> list[str]:
        """Look for the images; what is drawn has no file.

        Args:
            records: The pictures.

        Returns:
            A message about those that are not there; empty if all are.
        """
        return find_missing(record for record in records if record.image_path.parts[:1] != ("drawn",))

    def _split(self, number: int) -> SplitName:
        if self.fold is not None and self.folds is not None:
            away = (number - self.fold) % self.folds
            return "test" if away == 0 else "val" if away == 1 else "train"
        place = (number + 0.5) / self.drawn
        return "train" if place < self.fractions[0] else "val" if place < sum(self.fractions) else "test"


def _cut_out(image: Float[np.ndarray, "height width"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Cut a part of 15 to 40 % of the sides out of an image: too little to be one."""
    height, width = (max(8, round(side * rng.uniform(0.15, 0.4))) for side in image.shape)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(image.shape, (height, width), strict=True))
    return image[top : top + height, left : left + width].copy()


def _shuffle_tiles(image: Float[np.ndarray, "height width"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Cut an image into 3 x 3 to 5 x 5 tiles, and lay them in another order, some turned."""
    count = int(rng.integers(3, 6))
    tall, wide = (max(1, side // count) for side in image.shape)
    tiles = [image[r * tall : (r + 1) * tall, c * wide : (c + 1) * wide] for r in range(count) for c in range(count)]
    laid = [np.rot90(tiles[number], 2 * int(rng.integers(2))) for number in rng.permutation(len(tiles))]
    return np.block([[laid[r * count + c] for c in range(count)] for r in range(count)])
