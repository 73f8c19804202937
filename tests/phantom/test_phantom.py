"""Drawn images: what their masks promise, and that they look like images to somebody who has only seen real ones."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

import covidcxr.phantom as phantom_package
from covidcxr.errors import ConfigError
from covidcxr.phantom import LABELS, VIEWS, Phantom, draw_dataset, draw_phantom, write_dataset
from covidcxr.transforms.postprocess import lung_reasons, lung_sides

SIZES = [(64, 64), (128, 128), (64, 128), (128, 64), (150, 121)]


def every_kind() -> list[Phantom]:
    return [
        draw_phantom(seed, label=label, view=view, size=SIZES[seed % len(SIZES)], severity=(seed % 3) / 2)
        for seed in range(15)
        for label in LABELS
        for view in VIEWS
    ]


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return every_kind()


def count_parts(mask: np.ndarray) -> int:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def width(mask: np.ndarray) -> int:
    return int(np.ptp(np.flatnonzero(mask.any(0)))) + 1


def test_images_and_masks_have_the_promised_shapes_types_and_ranges() -> None:
    for size in SIZES:
        phantom = draw_phantom(1, label="covid19", size=size)
        assert phantom.image.shape == size
        assert phantom.image.dtype == np.float32
        assert phantom.image.min() >= 0
        assert phantom.image.max() <= 1
        assert phantom.image.std() > 0.1
        for mask in (*phantom.masks.values(), phantom.heart):
            assert mask.shape == size
            assert mask.dtype == bool
    assert list(phantom.masks) == ["lung_field", "lung", "infection"]
    assert (phantom.label, phantom.view, phantom.seed) == ("covid19", "PA", 1)


def test_masks_contain_and_exclude_one_another(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert not (phantom.lung_field & ~phantom.lung).any()
        assert not (phantom.infection & ~phantom.lung).any()
        assert not (phantom.heart & phantom.lung_field).any()
        assert (phantom.heart & phantom.lung).any(), "the lung reaches behind the heart"


def test_lungs_are_two_and_plausible(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert count_parts(phantom.lung_field) == 2
        assert count_parts(phantom.lung) == 2
        assert 0.15 <= phantom.lung_field.mean() <= 0.55
        assert lung_reasons(phantom.lung_field) == lung_reasons(phantom.lung) == ()


def test_same_arguments_same_bits_and_other_seeds_other_images() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must stay untouched
    first, again, other = (draw_phantom(seed, label="covid19", view="AP", size=(96, 96)) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert all(np.array_equal(first.masks[name], again.masks[name]) for name in first.masks)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.lung, other.lung)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_another_size_shows_the_same_anatomy() -> None:
    # Not to the pixel: OpenCV's fillPoly grows every outline by about half a pixel.
    large, small = (draw_phantom(3, label="pneumonia", size=(side, side)) for side in (256, 128))
    for name, mask in large.masks.items():
        shrunk = cv2.resize(mask.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA) > 0.5
        assert 2 * (shrunk & small.masks[name]).sum() / (shrunk.sum() + small.masks[name].sum()) > 0.94


@pytest.mark.parametrize("label", ["covid19", "pneumonia"])
@pytest.mark.parametrize("view", VIEWS)
def test_opacities_brighten_their_place_and_nothing_else(label: str, view: str) -> None:
    for seed in range(8):
        healthy = draw_phantom(seed, view=view, size=(128, 128), noise=0.0)
        ill = draw_phantom(seed, label=label, view=view, size=(128, 128), noise=0.0)
        change = ill.image - healthy.image
        assert np.array_equal(ill.lung, healthy.lung)
        assert not healthy.infection.any()
        assert change[ill.infection].mean() > 0.03
        assert change.min() >= 0
        assert abs(change[cv2.dilate(ill.lung.astype(np.uint8), np.ones((5, 5))) == 0]).max() < 1e-6


def test_covid_is_in_both_lungs_and_pneumonia_in_one() -> None:
    for seed in range(12):
        for label, sides in (("covid19", 2), ("pneumonia", 1)):
            phantom = draw_phantom(seed, label=label, size=(128, 128))
            assert sum((phantom.infection & lung).any() for lung in lung_sides(phantom.lung)) == sides


def test_covid_is_towards_the_wall_and_below() -> None:
    distances, heights = [], []
    for seed in range(30):
        phantom = draw_phantom(seed, label="covid19", size=(96, 96))
        rows, columns = np.indices(phantom.lung.shape)
        for lung in lung_sides(phantom.lung):
            distances.append(abs(columns[lung & phantom.infection] - 48).mean() - abs(columns[lung] - 48).mean())
            heights.append(rows[lung & phantom.infection].mean() - rows[lung].mean())
    assert np.mean(distances) > 2
    assert np.mean(heights) > 4


def test_severity_extends_the_opacities() -> None:
    for label in ("covid19", "pneumonia"):
        areas = [
            np.mean([draw_phantom(seed, label=label, severity=s, size=(96, 96)).infection.mean() for seed in range(10)])
            for s in (0.0, 0.5, 1.0)
        ]
        assert 0 < areas[0] < areas[1] < areas[2]


def test_images_in_bed_have_wider_hearts_higher_diaphragms_and_less_contrast() -> None:
    contrast = {}
    for seed in range(10):
        upright, lying = (draw_phantom(seed, view=view, size=(192, 192), marker=False) for view in VIEWS)
        ratios = [width(picture.heart) / width(picture.lung) for picture in (upright, lying)]
        assert 0.35 < ratios[0] < 0.52 < ratios[1] + 0.03
        assert ratios[1] > ratios[0] + 0.04
        assert np.flatnonzero(lying.lung.any(1))[-1] < np.flatnonzero(upright.lung.any(1))[-1]
        contrast[seed] = np.ptp(np.percentile(upright.image, [5, 95])) - np.ptp(np.percentile(lying.image, [5, 95]))
    assert np.mean(list(contrast.values())) > 0.05


def test_lungs_are_darker_than_what_lies_around_them() -> None:
    for seed in range(10):
        phantom = draw_phantom(seed, view=VIEWS[seed % 2], size=(128, 128))
        lung, heart = phantom.image[phantom.lung_field].mean(), phantom.image[phantom.heart].mean()
        ring = cv2.dilate(phantom.lung.astype(np.uint8), np.ones((9, 9))) > 0
        assert lung + 0.15 < heart
        assert lung + 0.05 < phantom.image[ring & ~phantom.lung].mean()


def test_marker_and_noise_can_be_left_out() -> None:
    plain = draw_phantom(2, marker=False, noise=0.0, size=(128, 128))
    marked = draw_phantom(2, noise=0.0, size=(128, 128))
    change = marked.image - plain.image
    assert change.max() > 0.3
    assert change.min() >= 0
    assert not (change > 0)[30:].any(), "the letter stands in an upper corner"
    grain = draw_phantom(2, marker=False, noise=0.05, size=(128, 128)).image - plain.image
    assert grain[plain.image > 0.1].std() == pytest.approx(0.05, rel=0.25)


def test_one_person_keeps_the_anatomy_from_image_to_image() -> None:
    def measure(patient_seed: int) -> np.ndarray:
        pictures = [draw_phantom(seed, patient_seed=patient_seed, size=(128, 128)) for seed in range(4)]
        return np.array([width(picture.heart) / width(picture.lung) for picture in pictures])

    same, others = measure(5), [measure(person).mean() for person in range(8)]
    assert same.std() < 0.02 < np.std(others)


def test_women_have_brighter_breasts_than_men() -> None:
    grey = {}
    for sex in ("F", "M"):
        pictures = [draw_phantom(seed, sex=sex, size=(96, 96), noise=0.0) for seed in range(10)]
        grey[sex] = np.array([picture.image[60:75][picture.lung_field[60:75]].mean() for picture in pictures])
    assert (grey["F"] > grey["M"]).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"label": "flu"}, "label"),
        ({"view": "lateral"}, "view"),
        ({"sex": "f"}, "sex"),
        ({"size": (63, 128)}, "size"),
        ({"size": (64, 129)}, "size"),
        ({"size": 128}, "size"),
        ({"size": (128.0, 128.0)}, "size"),
        ({"severity": 1.5}, "severity"),
        ({"severity": float("nan")}, "severity"),
        ({"noise": -0.1}, "noise"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"patient_seed": -1}, "patient_seed"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        draw_phantom(**{"seed": 0, **arguments})


def test_data_set_in_memory_is_balanced_and_reproducible() -> None:
    first, again = (list(draw_dataset(12, seed=4, size=(64, 64))) for _ in range(2))
    assert [picture.label for picture in first] == list(LABELS) * 4
    assert {picture.view for picture in first} == set(VIEWS)
    assert len({picture.seed for picture in first}) == 12
    assert all(np.array_equal(one.image, two.image) for one, two in zip(first, again, strict=True))
    assert {picture.label for picture in draw_dataset(3, labels=["normal"], size=(64, 64))} == {"normal"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("films"), 36, seed=3, size=(80, 72))


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_written_data_set_has_every_file_that_its_manifest_names(manifest: Path) -> None:
    rows = read_rows(manifest)
    columns = "path,label,patient_id,source,view,sex,age,lung_field,lung,infection"
    assert manifest.name == "manifest.csv"
    assert ",".join(rows[0]) == columns
    assert len(rows) == 36
    for row in rows:
        image = cv2.imread(str(manifest.parent / row["path"]), cv2.IMREAD_UNCHANGED)
        assert image.shape == ((70, 72) if row["source"] == "phantom-b" else (80, 72))
        assert image.dtype == np.uint8
        for name in ("lung_field", "lung", "infection"):
            mask = cv2.imread(str(manifest.parent / row[name]), cv2.IMREAD_UNCHANGED)
            assert mask.shape == image.shape
            assert set(np.unique(mask)) <= {0, 255}
            assert mask.any() == (name != "infection" or row["label"] != "normal")


def test_written_data_set_does_not_give_the_label_away(manifest: Path) -> None:
    rows = read_rows(manifest)
    for key in ("source", "view", "sex"):
        for value in {row[key] for row in rows}:
            labels = [row["label"] for row in rows if row[key] == value]
            assert len(set(labels)) == 3
            assert max(labels.count(label) for label in labels) < 0.6 * len(labels), (key, value)


def test_patients_have_one_label_and_some_have_several_images(manifest: Path) -> None:
    rows = read_rows(manifest)
    pictures: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        pictures.setdefault(row["patient_id"], []).append(row)
    assert len(pictures) == 24
    assert {len(of_one) for of_one in pictures.values()} == {1, 2}
    for of_one in pictures.values():
        for key in ("label", "source", "sex", "age"):
            assert len({row[key] for row in of_one}) == 1


def test_number_of_patients_can_be_chosen_and_writing_is_reproducible(tmp_path: Path) -> None:
    one, two = (write_dataset(tmp_path / name, 5, size=(64, 64), patients=2) for name in ("one", "two"))
    assert len({row["patient_id"] for row in read_rows(one)}) == 2
    assert one.read_bytes() == two.read_bytes()
    for path in (tmp_path / "one").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_wrong_counts_are_named(tmp_path: Path, count: object) -> None:
    with pytest.raises(ConfigError, match="count"):
        write_dataset(tmp_path, count)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="count"):
        next(draw_dataset(count))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="patients"):
        write_dataset(tmp_path, 3, patients=count)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="labels"):
        next(draw_dataset(1, labels=()))


@pytest.mark.real
def test_greys_resemble_those_of_real_images(real_data: Path) -> None:
    """The averages over drawn images lie within what real ones show (5th to 95th percentile)."""

    def measure(image: np.ndarray, lung: np.ndarray) -> list[float]:
        return [image.mean(), image.std(), image[lung].mean(), image[lung].std(), image[~lung].mean(), lung.mean()]

    real = []
    with (real_data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in [row for row in csv.DictReader(file) if row["lung_mask"]][::4]:
            image = cv2.imread(str(real_data / row["path"]), cv2.IMREAD_GRAYSCALE) / 255
            real.append(measure(image, cv2.imread(str(real_data / row["lung_mask"]), cv2.IMREAD_GRAYSCALE) > 127))
    drawn = [measure(picture.image, picture.lung_field) for picture in draw_dataset(24, size=(192, 192))]
    low, high = np.percentile(real, [5, 95], axis=0)
    assert (low < np.mean(drawn, axis=0)).all()
    assert (np.mean(drawn, axis=0) < high).all()


def test_all_names_exist() -> None:
    assert all(hasattr(phantom_package, name) for name in phantom_package.__all__)
