"""How many copies of images are found, by what was done to them, and how many pairs are falsely called copies.

    python tests/benchmarks/duplicates.py FOLDER [--copies 25]
    python tests/benchmarks/duplicates.py --drawn 200

FOLDER holds manifest.csv and images, none of which is a copy of another. A 64-bit difference hash of the same images,
at the threshold (10 of 64 bits) that is in common use, is measured in the same run. With --drawn only the time of a
search among so many drawn images of 256 pixels is measured, none of which is a copy.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from covidcxr.data import CSVDataModule, Record
from covidcxr.data.curation.duplicates import find_duplicates
from covidcxr.io.image import read_image
from covidcxr.phantom import draw_phantom

Image = np.ndarray
Change = Callable[[Image, np.random.Generator], Image]


def jpeg(image: Image, quality: int) -> Image:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def cropped(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape
    top, bottom, left, right = rng.uniform(0, 0.15, 4)
    return image[int(top * height) : height - int(bottom * height), int(left * width) : width - int(right * width)]


def resized(image: Image, rng: np.random.Generator) -> Image:
    scale = rng.uniform(0.45, 0.8) if rng.random() < 0.5 else rng.uniform(1.3, 2.2)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def noisy(image: Image, rng: np.random.Generator) -> Image:
    return (image + rng.normal(0, 15, image.shape)).clip(0, 255).round().astype(np.uint8)


def turned(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.choice([-5, 5])), 1)
    return cv2.warpAffine(image, turn, (width, height))


def gamma(image: Image, rng: np.random.Generator) -> Image:
    return ((image / 255) ** rng.choice([0.5, 0.65, 1.5, 2.0]) * 255).round().astype(np.uint8)


def marked(image: Image, rng: np.random.Generator) -> Image:
    image = image.copy()
    height, width = image.shape
    for text in ("L", "PORTABLE", "AP 12:41"):
        place = int(rng.uniform(0.02, 0.7) * width), int(rng.uniform(0.1, 0.95) * height)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, width / 384, 255, max(1, round(width / 192)))
    return image


def framed(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape
    edges = (rng.uniform(0, 0.2, 4) * np.array([height, height, width, width])).astype(int)
    return marked(cv2.copyMakeBorder(image, *map(int, edges), cv2.BORDER_CONSTANT, value=0), rng)


CHANGES: dict[str, Change] = {
    "re-encoded (JPEG 30 to 80)": lambda image, rng: jpeg(image, int(rng.integers(30, 80))),
    "strongly compressed (JPEG 10)": lambda image, rng: jpeg(image, 10),
    "blurred (sd 4 px)": lambda image, rng: cv2.GaussianBlur(image, (0, 0), 4),
    "noise (sd 15 of 255)": noisy,
    "resized (0.45 to 2.2)": resized,
    "squeezed to a square": lambda image, rng: cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA),
    "cropped (up to 15 % a side)": cropped,
    "gamma (0.5 to 2)": gamma,
    "equalised": lambda image, rng: cv2.equalizeHist(image),
    "inverted": lambda image, rng: 255 - image,
    "mirrored": lambda image, rng: image[:, ::-1].copy(),
    "turned by 5 degrees": turned,
    "text burnt in": marked,
    "framed, with text": framed,
    "cropped, gamma, turned, text, resized": lambda image, rng: resized(
        marked(turned(gamma(cropped(image, rng), rng), rng), rng), rng
    ),
}


def difference_hash(image: Image) -> np.ndarray:
    small = cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    return (small[:, 1:] > small[:, :-1]).ravel()


def time_drawn(count: int) -> None:
    images = [draw_phantom(number, size=(256, 256)).image.astype(np.float32) for number in range(count)]
    records = [Record(Path("nowhere"), image_id=str(number)) for number in range(count)]
    begun = time.process_time()
    found = find_duplicates(records, read=lambda record: images[int(record.image_id)])
    print(
        f"{count} drawn images: {time.process_time() - begun:.1f} s of CPU, {len(found)} groups falsely called copies"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--drawn", type=int, metavar="N", help="draw so many images and measure the time alone")
    parser.add_argument("--copies", type=int, default=25, help="copies a kind of change")
    parser.add_argument("--images", "--films", type=int, help="take only so many images")
    options = parser.parse_args()
    if options.drawn:
        time_drawn(options.drawn)
        return
    originals = CSVDataModule(options.folder, augment=None).unsplit_records()[: options.images]
    images = {record.image_id: (read_image(record.image_path) * 255).round().astype(np.uint8) for record in originals}
    rng = np.random.default_rng(0)
    records = list(originals)
    for kind, change in CHANGES.items():
        for number in rng.choice(len(originals), options.copies, replace=False):
            image_id = f"{kind}/{originals[number].image_id}"
            images[image_id] = change(images[originals[number].image_id], rng)
            records.append(Record(Path("nowhere"), image_id=image_id))
    begun = time.process_time()
    found = find_duplicates(records, read=lambda record: images[record.image_id].astype(np.float32) / 255)
    spent = time.process_time() - begun
    hits: Counter[str] = Counter()
    false = 0
    for group in found:
        originals_in = {
            name.partition("/")[2] if name.partition("/")[0] in CHANGES else name for name in group.image_ids
        }
        false += len(list(combinations(originals_in, 2)))
        present = set(group.image_ids)
        hits.update(
            name.partition("/")[0]
            for name in group.image_ids
            if name.partition("/")[0] in CHANGES and name.partition("/")[2] in present
        )
    hashes = {name: difference_hash(image) for name, image in images.items()}
    print(f"{'what was done':40} {'found':>8} {'by hash':>8}")
    for kind in CHANGES:
        copies = [name for name in images if name.startswith(f"{kind}/")]
        near = [(hashes[name] != hashes[name.partition("/")[2]]).sum() <= 10 for name in copies]
        print(f"{kind:40} {hits[kind] / len(copies):8.0%} {np.mean(near):8.0%}")
    table = np.array([hashes[record.image_id] for record in originals])
    apart = (table[:, None] != table[None]).sum(2)[np.triu_indices(len(originals), 1)]
    print(f"{'pairs falsely called copies':40} {false:8} {(apart <= 10).sum():8}")
    print(f"{len(records)} images, {len(apart)} pairs of originals, {1000 * spent / len(records):.0f} ms CPU an image")


if __name__ == "__main__":
    main()
