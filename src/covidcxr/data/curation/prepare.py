"""Compact copies of data sets: every image resized once, for fast epochs and for moving to a training machine."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from covidcxr import aliases
from covidcxr.config import PreprocessConfig
from covidcxr.data.cache import FittedImage, StoredImages, store_images
from covidcxr.data.collection import Collection, has_own_reader
from covidcxr.data.curation.prepared import FORMAT_VERSION, INDEX, RECORDS, STAMP, read_index, to_json
from covidcxr.data.dataset import fit_record, open_pixels
from covidcxr.data.files import find_twice
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError, ImageReadError
from covidcxr.io.folders import LOCK_FILES, is_draft, lock_folder, remove_drafts, replace_file
from covidcxr.io.image import write_image, write_mask
from covidcxr.io.pretrained import write_json
from covidcxr.types import Fit
from covidcxr.utils.plain import field_values, user_path
from covidcxr.utils.threads import Progress, map_threads, single_threaded

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "PrepareReport",
    "prepare_dataset",
    "digest",
]

_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*\\]|(^|/)\.{0,2}(/|$)|\.png/', re.IGNORECASE)
"""What no name of a file may hold, on any system: a way out of its folder, and an image that is a folder, too."""

_LONGEST = 200
"""Bytes of a name, or of a folder's in it: 255 are the limit of most disks."""


def _file_names(image_ids: Iterable[str]) -> dict[str, str]:
    """Name the files of images, without ending, below a folder of our own."""
    alike = Counter(name.casefold() for name in image_ids)
    return {name: _safe_name(name if alike[name.casefold()] == 1 else f"{name}-{digest(name)}") for name in image_ids}


def _safe_name(name: str) -> str:
    """Return a name that any disk takes and that leads nowhere else."""
    too_long = any(len(os.fsencode(part)) > _LONGEST for part in name.split("/"))
    return f"renamed/{digest(name)}" if too_long or _UNSAFE.search(name) else name


def digest(text: str) -> str:
    """Return digits that stand for a text, on every machine.

    Args:
        text: The text.

    Returns:
        24 hexadecimal digits.
    """
    return blake2b(os.fsencode(text), digest_size=12).hexdigest()


_FAILED = "failed.jsonl"


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What `prepare_dataset` did.

    Attributes:
        out: Folder of the copy.
        images: Number of images in it.
        written: How many of them were written now; the others were there from an earlier run.
        size: Bytes of all images and masks.
        left_out: Number of images that are not in it, by reason.
        failed: Images that could not be read, each with `image_id` and `error`; they are in `failed.jsonl`, too.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.data.curation.prepare import prepare_dataset

        report = prepare_dataset(CSVDataModule("phantoms"), "compact", image_size=(32, 32))
        assert report.images == 24 and not report.failed
        ```
    """

    out: Path
    images: int
    written: int
    size: int
    left_out: dict[str, int]
    failed: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return {**field_values(self), "out": str(self.out)}


class _Copied(NamedTuple):
    """An image in the copy, or why it is not there."""

    record: Record
    written: bool = False
    size: int = 0
    error: str | None = None
    fitted: FittedImage | None = None


def prepare_dataset(
    collection: Collection,
    out: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] = (256, 256),
    fit: Fit = "letterbox",
    num_workers: int = 2,
    memory_map: bool = True,
    progress: Progress | None = None,
) -> PrepareReport:
    """Write a compact copy of a data set: its images and masks at one size, as 8-bit PNG, and their records.

    They also go into one file, `pixels.bin`, not compressed, which is mapped into memory where samples of the copy's
    own size are read: nothing is decoded, and all processes share it. Where it was removed, the PNG files are read.

    Give the copy's folder as `root` to the same data module, with the same settings, and it has the same records; at
    the same `image_size` its samples are the same to the bit. Images that `views` leaves out are not copied; labels are
    the data set's own, so `label_map` and the split can be chosen anew.

    It can be interrupted at any moment: started again, it goes on where it stopped. An image or mask that cannot be
    read costs its image only.

    Args:
        collection: The data set.
        out: Where the copy goes: a new or empty folder, or one where the same copy was begun.
        image_size: Height and width of the frame that images are to be fitted to.
        fit: "letterbox" keeps the aspect ratio (the black padding is not stored), "stretch" does not.
        num_workers: Threads that read, resize and write.
        memory_map: Write `pixels.bin`, of one byte a pixel for the image and for each mask that it has.
        progress: Called with how many images of how many are done.

    Returns:
        What was done.

    Raises:
        ConfigError: If a setting is wrong, `out` holds something else, or another process works in it.
        DatasetError: If the data set is not there or contradicts itself, no image can be read, or the disk is full.
    """
    geometry = PreprocessConfig(image_size=image_size, fit=fit)
    if num_workers < 1:
        raise ConfigError(f"num_workers must be from 1 up, not {num_workers}.")
    target = user_path(out)
    _check_place(collection, target)
    records = list(collection.kept_records())
    _check_records(collection, records)
    plan, names = _plan(collection, geometry), _file_names([record.image_id for record in records])
    copy = partial(_copy, collection=collection, target=target, geometry=geometry, names=names, refit=memory_map)
    with _disk_explained(target):
        _refuse_other_files(target)  # before anything is written there
        with lock_folder(target), single_threaded():
            _claim(target, plan)
            masks = _all_masks(records) if memory_map else None
            with nullcontext() if masks is None else store_images(target, masks) as store:
                copying = map_threads(copy, records, threads=num_workers, progress=progress)
                copies = [_stored(copied, store) for copied in copying]
                report = _report(collection, target, copies)
            plan["stored_masks"] = masks
            _finish(collection, report, plan, [each.record for each in copies if each.error is None])
    return report


def _check_place(collection: Collection, target: Path) -> None:
    if collection.prepared is not None:
        raise ConfigError(f"{collection.root} is a compact copy already. Prepare another one from the data set itself.")
    if target.resolve().is_relative_to(collection.root.resolve()):
        raise ConfigError(
            f"{target} lies in the data set's own folder {collection.root}, where its images would be taken for more "
            f"of the data set. Choose a folder beside it."
        )


def _check_records(collection: Collection, records: Sequence[Record]) -> None:
    if not records:
        raise collection.no_image()
    for message in find_twice(records):
        raise DatasetError(message)


def _plan(collection: Collection, geometry: PreprocessConfig) -> dict[str, Any]:
    """Return what decides how the images of a copy look; a copy is gone on with only if it is the same."""
    origin = f"{collection.root.resolve()} {collection.drawn_masks and collection.drawn_masks.resolve()}"
    plan = {
        "format_version": FORMAT_VERSION,
        "dataset": type(collection).__name__,
        "settings": collection.copy_settings(),
        "views": collection.views,
        "drawn_masks": collection.drawn_masks is not None,
        "min_lung_area": collection.min_lung_area,
        "image_size": geometry.image_size,
        "fit": geometry.fit,
        "origin": digest(origin),  # not the path: copies are handed on
    }
    return dict(json.loads(to_json(plan)))


def _begun(target: Path) -> Path | None:
    """Return the file that says which copy was begun here."""
    return next((path for path in (target / INDEX, target / STAMP) if path.is_file()), None)


def _refuse_other_files(target: Path) -> None:
    if _begun(target) is None and target.exists():
        names = {path.name for path in target.iterdir() if not is_draft(path)}
        if names - LOCK_FILES:
            raise ConfigError(f"{target} holds other files. Choose a new folder for the copy.")


def _claim(target: Path, plan: dict[str, Any]) -> None:
    """Mark a folder as the place of this copy, and clear what an interrupted run left half-written."""
    _refuse_other_files(target)
    begun = _begun(target)
    old = plan if begun is None else read_index(begun)
    for key, value in plan.items():
        if old.get(key) != value:
            words = "from another root" if key == "origin" else f"with {key}={old.get(key)!r}, not {value!r}"
            raise ConfigError(f"The compact copy in {target} was begun {words}. Choose another folder, or remove it.")
    write_json(target / STAMP, plan)
    (target / INDEX).unlink(missing_ok=True)
    remove_drafts(target)


def _all_masks(records: Iterable[Record]) -> list[str]:
    return sorted({name for record in records for name in (*record.mask_paths, *record.empty_masks)})


def _stored(copied: _Copied, store: Callable[[FittedImage], None] | None) -> _Copied:
    """Add an image to the file of all, and let go of its pixels."""
    if store is not None and copied.fitted is not None:
        store(copied.fitted)
    return copied._replace(fitted=None)


def _copy(
    record: Record,
    *,
    collection: Collection,
    target: Path,
    geometry: PreprocessConfig,
    names: dict[str, str],
    refit: bool,
) -> _Copied:
    """Write an image and its masks, unless they are all there; `refit` says to read them then."""
    name = f"{names[record.image_id]}.png"
    masks = {mask: Path("masks", _safe_name(mask), name) for mask in record.mask_paths}
    copied = replace(record, image_path=Path("films", name), mask_paths=masks, box=None)
    paths = [target / path for path in (copied.image_path, *masks.values())]
    missing = not all(path.is_file() for path in paths)
    size, wanted, fitted = geometry.image_size, {*masks, *record.empty_masks}, None
    if refit and not missing:
        there = replace(copied, image_path=paths[0], mask_paths=dict(zip(masks, paths[1:], strict=True)))
        try:
            fitted = fit_record(there, open_pixels(there), size, geometry.fit, wanted)
        except (ImageReadError, DatasetError):  # damaged since it was written
            missing = True
    if missing:
        try:
            # As the data module reads, or samples of the copy would not be the same to the bit.
            own = has_own_reader(collection)
            image = collection.load_image(record) if own else open_pixels(record, collection.bits, size)
            fitted = fit_record(record, image, size, geometry.fit, wanted)
        except (ImageReadError, DatasetError) as error:
            return _Copied(record, error=str(error))
        for mask, path in zip(masks, paths[1:], strict=True):
            write_mask(path, fitted.without_padding(fitted.masks[mask]) > 0)
        write_image(paths[0], fitted.without_padding(fitted.image))
    return _Copied(copied, missing, sum(path.stat().st_size for path in paths), fitted=fitted)


def _report(collection: Collection, target: Path, copies: Sequence[_Copied]) -> PrepareReport:
    failed = [{"image_id": each.record.image_id, "error": each.error} for each in copies if each.error is not None]
    if len(failed) == len(copies):
        raise DatasetError(f"Not one of {len(failed)} images can be copied. The first: {failed[0]['error']}")
    left_out = dict(collection.left_out.most_common())
    return PrepareReport(
        out=target,
        images=len(copies) - len(failed),
        written=sum(each.written for each in copies),
        size=sum(each.size for each in copies),
        left_out={**left_out, "cannot be read": len(failed)} if failed else left_out,
        failed=failed,
    )


def _finish(collection: Collection, report: PrepareReport, plan: dict[str, Any], records: Sequence[Record]) -> None:
    (report.out / _FAILED).unlink(missing_ok=True)
    if plan["stored_masks"] is None:
        StoredImages.remove(report.out)
    if report.failed:
        _write(report.out / _FAILED, "".join(f"{to_json(failure)}\n" for failure in report.failed).encode())
    lines = "".join(f"{to_json(record)}\n" for record in records)
    _write(report.out / RECORDS, gzip.compress(lines.encode(), compresslevel=6, mtime=0))
    index = {
        **plan,
        "classes": collection.own_classes or collection.classes,
        "films": report.images,
        "listed": dict(collection.listed),
        "left_out": report.left_out,
    }
    write_json(report.out / INDEX, index)
    (report.out / STAMP).unlink()


def _write(path: Path, content: bytes) -> None:
    with replace_file(path) as draft:
        draft.write_bytes(content)


@contextmanager
def _disk_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"The copy in {target} cannot be written: {error.strerror or error}. Mend that and prepare it again: it "
            f"goes on where it stopped."
        ) from error
