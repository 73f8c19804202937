"""The comparison of two images: cheap where they differ, whole where they may be copies."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from covidcxr.data import Record, find_duplicates
from covidcxr.data.curation import near_duplicates
from covidcxr.data.curation.near_duplicates import MIN_INLIERS, MIN_LIKENESS, Prepared, compare, likeness
from covidcxr.phantom import draw_phantom


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [(draw_phantom(number, size=(256, 256)).image * 255).astype(np.uint8) for number in range(10)]


def test_few_pairs_of_different_chests_are_compared_in_full(
    images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    full: list[tuple[Prepared, Prepared]] = []

    def note(image: Prepared, other: Prepared) -> tuple[int, float]:
        full.append((image, other))
        return 0, 0.0

    monkeypatch.setattr(near_duplicates, "_compare", note)
    pairs = list(combinations(map(Prepared, images), 2))
    for image, other in pairs:
        compare(image, other)
    assert len(full) < 0.2 * len(pairs)


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], 0),
        lambda image: cv2.GaussianBlur(image, (0, 0), 3),
        lambda image: 255 - image[:, ::-1],
        lambda image: np.pad(image[12:246, 10:245], 14),
    ],
    ids=["strong JPEG", "blur", "inverted and mirrored", "cropped and framed"],
)
def test_copies_pass_the_small_pictures(damage, images: list[np.ndarray]) -> None:
    for image in images[:2]:
        copy = np.ascontiguousarray(damage(image))
        inliers, alike, _ = compare(Prepared(image), Prepared(copy))
        assert inliers >= MIN_INLIERS
        in_full = likeness(image, copy)[1]
        assert MIN_LIKENESS <= alike <= in_full + 0.02  # the map of the small pictures may be enough


def draw_second_visit(seed: int) -> np.ndarray:
    """Draw a chest at another time: with an opacity, in another posture, with other grain."""
    rng = np.random.default_rng(seed)
    grey = (draw_phantom(seed, label="covid19", size=(256, 256)).image * 255).astype(np.float32)
    moves = [cv2.GaussianBlur(rng.normal(size=grey.shape).astype(np.float32), (0, 0), 10) for _ in range(2)]
    across, down = (6 * move / np.abs(move).max() for move in moves)
    rows, columns = np.mgrid[:256, :256].astype(np.float32)
    moved = cv2.remap(grey, columns + across, rows + down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return (moved + rng.normal(0, 3, moved.shape)).clip(0, 255).astype(np.uint8)


def test_two_visits_of_one_body_are_no_copies_but_named(tmp_path: Path) -> None:
    records = []
    for number in range(3):
        grey = (draw_phantom(number, label="normal", size=(256, 256)).image * 255).astype(np.uint8)
        for visit, image in enumerate((grey, draw_second_visit(number))):
            path = tmp_path / f"{number}-{visit}.png"
            cv2.imwrite(str(path), image)
            records.append(Record(path, image_id=path.name))
    found = find_duplicates(records, cache=tmp_path / "cache")
    assert not found.groups
    assert {(f"{number}-0.png", f"{number}-1.png") for number in range(3)} == set(found.bodies)
    assert find_duplicates(records, cache=tmp_path / "cache") == found  # as kept on disk


def test_correlations_by_part_against_numpy() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (60, 66)).astype(np.float32)
    other = (image + rng.normal(0, 1, image.shape)).astype(np.float32)
    covered = np.ones_like(image)
    covered[:10, :11] = 0  # the first of 6 x 6 parts is not seen
    expected = [
        np.corrcoef(image[y : y + 10, x : x + 11].ravel(), other[y : y + 10, x : x + 11].ravel())[0, 1]
        for y in range(0, 60, 10)
        for x in range(0, 66, 11)
    ][1:]
    assert near_duplicates._agreement(image, other, covered) == pytest.approx(np.median(expected), abs=1e-4)
    assert near_duplicates._agreement(image, np.zeros_like(image), covered) == 0
