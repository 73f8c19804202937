"""The audit of data: it finds planted shortcuts and leakage, and raises no alarm on clean data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import draw_image, draw_lungs, write_csv, write_image
from PIL import Image

from covidcxr.cli import main
from covidcxr.data import CovidxCXR3DataModule, CSVDataModule, DarkCovidNetDataModule, Record
from covidcxr.data.curation.duplicates import Duplicates
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation import Estimate
from covidcxr.evaluation.shortcuts import PROBES, DataAudit, audit_data, images, make_page, probes
from covidcxr.evaluation.shortcuts.association import detectable_auroc, strongest_features
from covidcxr.evaluation.shortcuts.features import (
    FeatureTable,
    background_features,
    border_features,
    mark_features,
    mark_tiles,
    one_hot,
    read_header,
    shape_features,
    texture_features,
    texture_tiles,
)
from covidcxr.evaluation.shortcuts.leakage import Leakage, find_leakage
from covidcxr.evaluation.shortcuts.probes import SCATTER, cross_validate, standard_error, stands_out
from covidcxr.evaluation.shortcuts.targets import Target, cross_table
from covidcxr.evaluation.shortcuts.verdict import split_findings
from covidcxr.phantom import draw_phantom, write_dataset


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small forests find planted shortcuts too."""
    monkeypatch.setattr(probes, "_TREES", 8)


Row = dict[str, str]
Plant = Callable[[np.ndarray, Row], np.ndarray]


def write_images(root: Path, count: int, seed: int = 0, plant: Plant | None = None, labels: int = 2) -> CSVDataModule:
    """Write images, two for each patient, with random labels that only a planted shortcut gives away."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(count // 2):
        label = ("covid19", "normal", "pneumonia")[rng.integers(labels)]
        person = {"label": label, "patient_id": str(patient), "source": ("north", "south")[rng.integers(2)]}
        person |= {
            "sex": "MF"[rng.integers(2)],
            "age": str(rng.integers(20, 90)),
            "view": "PA",
        }
        for image in range(2):
            row = {"path": f"images/{patient:03d}_{image}.png", **person}
            pixels = draw_image(int(rng.integers(2**31)), (48, 48))
            write_image(root / row["path"], plant(pixels, row) if plant else pixels)
            rows.append(row)
    write_csv(root / "manifest.csv", rows)
    return CSVDataModule(root)


def frame(pixels: np.ndarray, row: Row) -> np.ndarray:
    if row["label"] == "covid19":
        pixels[:2] = 0
    return pixels


def marker(pixels: np.ndarray, row: Row) -> np.ndarray:
    if row["label"] == "covid19":
        pixels[1:5, 2:4] = 255
    return pixels


def shape(pixels: np.ndarray, row: Row) -> np.ndarray:
    return pixels[:, :44] if row["label"] == "covid19" else pixels


def mode(pixels: np.ndarray, row: Row) -> np.ndarray:
    return np.stack([pixels] * 3, axis=-1) if row["label"] == "covid19" else pixels


def source(pixels: np.ndarray, row: Row) -> np.ndarray:
    row["source"] = {"covid19": "clinic"}.get(row["label"], row["source"])
    return pixels


def age(pixels: np.ndarray, row: Row) -> np.ndarray:
    row["age"] = "5" if row["label"] == "normal" else row["age"]
    return pixels


def alarms(audit: DataAudit) -> set[str]:
    return {score.probe.name for target in audit.targets for score in target.alarms}


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (frame, {"border", "corners", "header"}),  # rows of one grey are fewer bytes
        (marker, {"corners", "border"}),
        (shape, {"shape", "header"}),
        (mode, {"header"}),
        (source, {"source"}),
        (age, {"age", "facts"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_shortcut_is_found_and_nothing_else(plant, expected, tmp_path):
    wanted = {"frame": "border", "marker": "corners", "mode": "header"}.get(plant.__name__, plant.__name__)
    audit = audit_data(write_images(tmp_path, 100, plant=plant), segmenter=None, duplicates=False)
    assert wanted in alarms(audit)
    assert alarms(audit) <= expected
    score = audit.targets[0].get(wanted)
    assert score is not None
    assert score.auroc.value > 0.9
    title = next(probe.title for probe in PROBES if probe.name in alarms(audit) and probe.title in audit.verdict)
    assert any(title in finding for finding in audit.findings)
    assert "No shortcut" not in audit.verdict


@pytest.mark.parametrize("seed", range(2))
def test_clean_images_raise_no_alarm(seed, tmp_path):
    audit = audit_data(write_images(tmp_path, 160, seed, labels=3), segmenter=None, duplicates=False, seed=seed)
    assert alarms(audit) == set()
    blind = audit.targets[0].blind
    assert len(blind) == 7  # view and shape are the same for all, and lungs were not drawn
    assert np.mean([score.auroc.low <= 0.5 for score in blind]) > 0.5
    assert audit.verdict.startswith("No shortcut found")
    assert any("Nearest to a shortcut" in finding for finding in audit.findings)


def test_alarms_on_clean_tables_are_as_rare_as_promised():
    """Nominal: one audit of forty. Of 40 audits, 5 alarms or more have a chance of 0.3 %, if that holds."""
    false = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = rng.integers(3, size=150)
        known, people = np.ones(150, bool), np.arange(150)
        target = Target("label", ("a", "b", "c"), labels)
        columns = [one_hot([str(v) for v in rng.integers(k, size=150)]) for k in (2, 4, 12)]
        scores = [cross_validate(PROBES[0], FeatureTable(c, known), target, people % 5, people, seed) for c in columns]
        false += any(stands_out(score, 2.77) for score in scores)  # 9 AUROCs
    assert false < 5


@pytest.mark.slow
def test_clean_phantoms_raise_no_alarm_with_the_lungs_removed(tmp_path):
    write_dataset(tmp_path, 240, size=(96, 96), patients=240)
    audit = audit_data(CSVDataModule(tmp_path), duplicates=False)
    assert alarms(audit) == set()
    target = audit.targets[0]
    assert target.get("background").auroc.value < 0.62
    assert target.get("thumbnail").auroc.value > 0.7  # the opacities are visible there: that is not a shortcut
    assert audit.verdict.startswith("Whether there is a shortcut is not decided")
    assert "thumbnail" in audit.verdict
    assert any("Not blind to the lungs" in finding for finding in audit.findings)


def test_removed_lungs_leave_no_trace_of_their_content():
    image = draw_image(3, (96, 96)).astype(np.float32) / 255
    lungs = draw_lungs((96, 96))
    opaque, marked = image.copy(), image.copy()
    opaque[lungs] = 0.9
    marked[:8, :8] = 1
    plain = np.array(background_features(image, lungs))
    assert np.abs(np.array(background_features(opaque, lungs)) - plain).max() < 1e-6
    assert np.abs(np.array(background_features(marked, lungs)) - plain).max() > 0.1
    assert np.isfinite(background_features(image, np.ones_like(lungs))).all()


class TestTextureAndMarks:
    image = draw_phantom(5, size=(192, 192), marker=False).image.astype(np.float32)
    lungs = draw_phantom(5, size=(192, 192)).lung

    def texture(self, image: np.ndarray) -> np.ndarray:
        return np.array(texture_features(texture_tiles(image), self.lungs))

    def test_noise_blur_and_jpeg_change_the_texture_of_their_frequency(self):
        rng = np.random.default_rng(0)
        noisy = self.image + rng.normal(0, 10 / 255, self.image.shape).astype(np.float32)
        blurred = cv2.GaussianBlur(self.image, (0, 0), 2)
        code = cv2.imencode(".jpg", (self.image * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 10])[1]
        blocked = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        plain, noise, blur, blocks = map(self.texture, (self.image, noisy, blurred, blocked))
        assert (noise[[0, 4, 8]] > plain[[0, 4, 8]] + 0.5).all()  # the finest band
        assert (blur[[0, 4, 8]] < plain[[0, 4, 8]] - 0.5).all()
        assert abs(blur[7] - plain[7]) < 0.3  # the coarsest
        assert blocks[17] > plain[17] + 0.5  # steps every 8 pixels
        assert abs(noise[17]) < 0.3

    def test_texture_and_marks_see_no_lung(self):
        changed = self.image.copy()
        inner = cv2.erode(self.lungs.astype(np.uint8), np.ones((27, 27))) > 0  # filters reach beyond their tile
        changed[inner] += np.random.default_rng(0).normal(0, 0.2, inner.sum()).astype(np.float32)
        assert np.abs(self.texture(changed) - self.texture(self.image)).max() < 0.05
        plain, marked = (np.array(mark_features(mark_tiles(image), self.lungs)) for image in (self.image, changed))
        assert np.abs(marked - plain).max() < 0.05

    @pytest.mark.parametrize("column", [20, 90, 150])
    def test_a_letter_in_the_top_strip_counts_wherever_it_is(self, column):
        grey = cv2.putText((self.image * 255).astype(np.uint8), "L", (column, 16), 0, 0.4, 255, 1)
        plain, marked = (
            np.array(mark_features(mark_tiles(image), self.lungs))
            for image in (self.image, grey.astype(np.float32) / 255)
        )
        assert marked[4] == plain[4] + 1  # spots in the strip at the top
        assert (np.abs(marked - plain)[6:12] < 0.01).all()  # the strip at the bottom

    def test_letters_at_the_edge_are_not_covered_by_the_widened_lungs(self):
        """Most are seen, and an opacity is not: the same chests with and without one."""
        sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
        import planted

        rows = {}
        for number in range(30):
            drawn, ill = (draw_phantom(number, label=label, size=(128, 128)) for label in ("normal", "covid19"))
            images = {"clean": (drawn.image, drawn.lung), "opacity": (ill.image, ill.lung & ~ill.infection)}
            for place in ("top", "edge"):
                lettered = planted.letter(drawn.image, np.random.default_rng(number), place)
                images[place] = np.asarray(lettered, np.float32), drawn.lung
            for name, (image, lungs) in images.items():
                rows.setdefault(name, []).append(planted.read(image, lungs)["marks"])
        labels, patients = np.repeat([0, 1], 30), np.arange(60)
        found = {
            name: strongest_features(np.array(rows["clean"] + rows[name]), labels, patients, ("a", "b"))["b"]
            for name in ("top", "edge", "opacity")
        }
        assert min(found["top"].auroc, found["edge"].auroc) > 0.75
        assert max(found["top"].p_value, found["edge"].p_value) < 0.01
        assert found["opacity"].auroc < 0.6

    def test_a_picture_smaller_than_the_tiles(self):
        for shape in ((5, 7), (24, 200), (3, 3)):
            image, lungs = np.zeros(shape, np.float32), np.zeros(shape, bool)
            assert np.isfinite(texture_features(texture_tiles(image), lungs)).all()
            assert np.isfinite(mark_features(mark_tiles(image), ~lungs)).all()


class TestTheStrongestFeature:
    def test_chance_is_as_rare_as_its_p_value_says(self):
        p_values = []
        for seed in range(200):
            rng = np.random.default_rng(seed)
            values = rng.normal(size=(80, 8)) + rng.normal(size=(80, 1))
            values[:, 0] = rng.random(80) < 0.1
            tests = strongest_features(values, np.arange(80) % 4 // 3, np.arange(80), ("a", "b"), seed)
            p_values.append(tests["b"].p_value)
        assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1

    def test_the_stated_power_is_had(self):
        auroc = detectable_auroc(60, 60, tests=20, features=3)
        found = []
        for seed in range(150):
            rng = np.random.default_rng(seed)
            labels = np.repeat([0, 1], 60)
            values = rng.normal(size=(120, 3))
            values[:, 0] += 8 * (rng.random(120) < np.where(labels == 1, auroc, 1 - auroc))
            test = strongest_features(values, labels, np.arange(120), ("a", "b"), seed)["b"]
            found.append(test.p_value < 0.025 / 20 and test.auroc >= 0.6)
        assert 0.68 <= np.mean(found) <= 0.92

    def test_images_of_one_patient_count_once(self):
        values, labels, patients = np.arange(40.0)[:, None] // 20, np.arange(40) // 20, np.arange(40) // 10
        (test, _) = strongest_features(values, labels, patients, ("a", "b")).values()
        assert (test.auroc, test.patients) == (1, 2)
        assert test.p_value > 0.05
        assert strongest_features(np.zeros((40, 2)), labels, patients, ("a", "b")) == {}


@pytest.mark.slow
def test_planted_shortcuts_of_most_kinds_are_found():
    """A small part of what the benchmark prints."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import planted

    pool = planted.Pool(120, 128, first=0)
    assert planted.alarms(pool.audit("", 0.5, 120, 0)) == []
    for kind in (*planted.PICTURES, *planted.COLUMNS):
        assert planted.alarms(pool.audit(kind, 1, 120, 0)), kind


def test_features_of_frame_and_shape():
    image = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    image[-10:] = 0
    top, bottom, left, right = np.array(border_features(image)).reshape(4, 3)
    assert bottom == pytest.approx([0.2, 0, 0])
    assert top[0] == left[0] == right[0] == 0
    assert shape_features((50, 40)) == [50, 40, 0.8, 0]


def test_a_perfect_score_of_five_patients_is_no_alarm(tmp_path):
    audit = audit_data(write_images(tmp_path, 24, plant=mode), segmenter=None, duplicates=False)
    score = audit.targets[0].get("header")
    assert score.auroc.value == 1
    assert not score.alarm
    assert "too few patients" in audit.verdict
    assert standard_error(Estimate(1.0, 1.0, 1.0, 10, 5), 10) == pytest.approx(SCATTER * np.sqrt(11 / (12 * 25)))


def test_lungs_are_removed_by_masks_where_all_images_have_one(tmp_path, monkeypatch):
    def refuse(segmenter):
        raise ConfigError("no segmenter is needed")

    monkeypatch.setattr(images, "_lung_pipeline", refuse)
    write_dataset(tmp_path, 24, size=(64, 64), patients=24)
    data = CSVDataModule(tmp_path, mask_columns={"lung": "lung"})
    audit = audit_data(data, folds=3, duplicates=False)
    assert {"marks", "texture", "background"} <= {score.probe.name for score in audit.targets[0].probes}
    assert any("the data set's own masks" in note for note in audit.notes)
    records = data.unsplit_records()
    records[0].mask_paths["lung"].write_bytes(b"no mask")
    assert audit_data(data, folds=3, duplicates=False).targets  # a mask that cannot be read: that image is left out
    lacking = [replace(records[0], mask_paths={}), *records[1:]]
    assert images.drawn_lungs(records) == "lung"
    assert images.drawn_lungs(lacking) is None


def test_same_seed_same_figures(tmp_path):
    data = write_images(tmp_path, 40)
    first, second = (audit_data(data, segmenter=None, seed=4, duplicates=False).to_dict() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert json.loads(json.dumps(first, allow_nan=False)) == json.loads(json.dumps(first))


class TestConfounding:
    def test_cramers_v_against_scipy(self):
        from scipy.stats.contingency import association

        rng = np.random.default_rng(0)
        labels = rng.integers(3, size=4000)
        values = np.where(rng.random(4000) < 0.5, labels, rng.integers(4, size=4000))
        table = cross_table(
            "source", Target("label", ("a", "b", "c"), labels), [f"s{v}" for v in values], np.arange(4000)
        )
        assert table.cramers_v.value == pytest.approx(association(table.images, method="cramer"), abs=2e-3)
        assert table.cramers_v.low < table.cramers_v.value < table.cramers_v.high
        assert table.images.sum() == table.patients.sum() == 4000

    def test_which_comparisons_the_sources_allow(self):
        labels = np.repeat([0, 1, 2], [60, 60, 60])
        sources = ["a"] * 60 + ["a"] * 30 + ["b"] * 30 + ["b"] * 60
        table = cross_table("source", Target("label", ("x", "y", "z"), labels), sources, np.arange(180) // 2)
        supported = {pair.labels: pair.supported for pair in table.pairs}
        assert supported == {("x", "y"): [], ("x", "z"): [], ("y", "z"): []}  # 15 patients
        table = cross_table("source", Target("label", ("x", "y", "z"), labels), sources, np.arange(180))
        assert {pair.labels: pair.supported for pair in table.pairs} == {
            ("x", "y"): ["a"],
            ("x", "z"): [],
            ("y", "z"): ["b"],
        }
        assert table.single == {}

    def test_one_source_has_no_association(self):
        table = cross_table("source", Target("label", ("x", "y"), np.arange(20) % 2), ["a"] * 20, np.arange(20))
        assert np.isnan(table.cramers_v.value)


class TestLeakage:
    def test_patients_and_copies_across_an_official_split(self, tmp_path):
        rows = []
        for number in range(48):
            label, split = ("covid19", "normal")[number % 2], "test" if number >= 36 else "train"
            row = {"path": f"images/{number}.png", "label": label, "patient_id": str(number), "split": split}
            write_image(tmp_path / row["path"], np.kron(draw_image(number), np.ones((3, 3), np.uint8)))
            rows.append(row)
        rows[40]["patient_id"] = rows[2]["patient_id"]  # in both parts, one label
        rows[41]["patient_id"] = rows[43]["patient_id"] = "0"  # in both parts, two labels
        write_image(tmp_path / rows[47]["path"], np.kron(draw_image(4), np.ones((3, 3), np.uint8)))
        write_csv(tmp_path / "manifest.csv", rows)
        audit = audit_data(CSVDataModule(tmp_path), segmenter=None)
        leakage = audit.leakage
        assert leakage.split == {"train": 36, "test": 12}
        assert (leakage.shared_patients, leakage.shared_images) == (2, 3)
        assert leakage.contradictory == {"0": ["covid19", "normal"]}
        assert leakage.contradictory_images == 3
        assert leakage.copies is not None
        assert [set(group.image_ids) for group in leakage.copies.groups] == [{"images/4.png", "images/47.png"}]
        assert leakage.copies.across_splits == leakage.copies.contradicting == leakage.copies.across_patients == 1
        assert any("2 patients are in more than one part" in finding for finding in audit.findings)
        assert leakage.copies.to_dict()["held_out_with_a_copy_in_training"] == {"test": ["images/47.png"]}
        assert any("1 of 12 test images have a copy" in finding for finding in audit.findings)

    def test_unknown_patients_are_no_proof_of_no_leak(self):
        def leaks(*patients: str | None) -> Leakage:
            splits = ("train", "test", "train", "test")
            records = [
                Record(Path(f"{number}.png"), label="normal", patient_id=patient, split=splits[number])
                for number, patient in enumerate(patients)
            ]
            return find_leakage(records, np.arange(4), copies=None, exclusive=True)

        nobody = leaks(None, None, None, None)
        assert (nobody.shared_patients, nobody.shared_images, nobody.random) == (None, None, {})
        some = leaks("a", "a", None, None)
        assert (some.shared_patients, some.shared_images, some.unknown_patients) == (1, 1, 2)
        assert some.random["all"].images == 1

    def test_the_page_says_that_patients_are_not_known(self, tmp_path, monkeypatch):
        data = write_images(tmp_path, 60)
        splits = ("train", "train", "test")
        records = [
            replace(record, patient_id=None, split=splits[number % 3])
            for number, record in enumerate(data.unsplit_records())
        ]
        monkeypatch.setattr(data, "unsplit_records", lambda: records)
        audit = audit_data(data, pixels=False)
        assert (audit.patients, audit.units, audit.unit) == (None, 60, "image")
        assert audit.to_dict()["patients"] is None
        assert any("The patient of no image is known (60 images)" in finding for finding in audit.findings)
        page = make_page(audit)
        assert ("patients", "not known") in page.facts
        rows = dict(next(s for s in page.sections if s.title == "Leakage between splits").blocks[0].rows)
        assert rows["Patients in more than one part"] == "not known: no patient is known"

    @pytest.mark.parametrize("related", [True, False])
    def test_neighbours_by_number_tell_of_unknown_patients(self, related):
        rng = np.random.default_rng(0)
        bodies = rng.random((60, 576))
        records = [
            Record(Path(f"covid_{number}.png"), label="covid19", split=("train", "train", "test")[number % 3])
            for number in range(60)
        ]
        pictures = {n: bodies[n // 2 if related else n] + 0.5 * rng.random(576) for n in range(60)}
        patients = np.arange(60)
        leakage = find_leakage(records, patients, copies=None, exclusive=True, thumbnails=pictures)
        assert leakage.series is not None
        assert (leakage.series.pairs, leakage.series.held_out) == (59, 20)
        assert abs(leakage.series.alike - (0.75 if related else 0.5)) < 0.1
        assert find_leakage(records, patients, copies=None, exclusive=True).series is None

    def test_near_identical_bodies_tell_of_unknown_patients(self):
        patients, splits = (None, None, "a", "b", None), ("train", "test", "train", "test", "train")
        records = [
            Record(Path(f"{number}.png"), label="normal", patient_id=patient, split=split)
            for number, (patient, split) in enumerate(zip(patients, splits, strict=True))
        ]
        pairs = (("0.png", "1.png"), ("2.png", "3.png"), ("0.png", "4.png"))  # the second is of known patients
        leakage = find_leakage(records, np.arange(5), copies=Duplicates((), {}, pairs), exclusive=True)
        bodies = leakage.copies.to_dict()["near_identical_bodies"]
        assert bodies["image_ids"] == [["0.png", "1.png"], ["0.png", "4.png"]]
        assert bodies["held_out_with_one_in_training"] == {"test": ["1.png"]}
        audit = DataAudit("drawn", 5, 2, (), None, leakage, {}, 0, {}, 0, {})
        words = [finding for _, finding in split_findings(audit)]
        assert words[-1].startswith("2 pairs of images that are no copies show near-identical bodies, most likely one")
        assert "; 1 image for validation or testing has such an image in training. Most images" in words[-1]

    def test_a_random_split_by_image(self, tmp_path):
        audit = audit_data(write_images(tmp_path, 200), pixels=False)
        split = audit.leakage.random["all"]
        # The other image of a pair is among the 160 of 199 that train.
        assert split.share == pytest.approx(160 / 199, abs=0.03)
        assert split.low <= split.share <= split.high
        assert split.patients == 100


class TestWhatIsNotThere:
    def test_missing_and_damaged_images(self, tmp_path):
        data = write_images(tmp_path, 60)
        images = sorted((tmp_path / "images").iterdir())
        images[0].unlink()
        images[5].write_bytes(images[5].read_bytes()[:400])
        audit = audit_data(data, segmenter=None, duplicates=False)
        assert audit.missing == 1
        assert list(audit.failed) == [f"images/{images[5].name}"]
        assert any("1 images are not on the disk" in note for note in audit.notes)
        assert audit.targets[0].get("thumbnail").auroc.count == 58

    def test_no_image_at_all(self, tmp_path):
        data = write_images(tmp_path, 60, plant=source)
        for image in (tmp_path / "images").iterdir():
            image.unlink()
        audit = audit_data(data)
        assert audit.missing == 60
        assert audit.skipped["thumbnail"] == audit.skipped["header"] == "no image is on the disk"
        assert {score.probe.kind for score in audit.targets[0].probes} == {"column"}
        assert alarms(audit) == {"source"}
        assert audit.leakage.copies is None

    def test_no_pixels(self, tmp_path):
        audit = audit_data(write_images(tmp_path, 60, plant=mode), pixels=False)
        assert alarms(audit) == {"header"}
        assert audit.skipped["corners"] == "images were not to be opened"

    def test_at_most_so_many_images_are_opened(self, tmp_path):
        audit = audit_data(write_images(tmp_path, 80), segmenter=None, duplicates=False, max_images=41)
        assert audit.targets[0].get("grey").auroc.count == 40
        assert audit.targets[0].get("grey").auroc.patients == 20
        assert "Pixels: 40 of 80 images" in " ".join(audit.notes)

    def test_one_label(self, tmp_path):
        audit = audit_data(write_images(tmp_path, 30, labels=1), segmenter=None, duplicates=False)
        assert audit.targets == ()
        assert "one label only" in audit.verdict
        assert make_page(audit).sections

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(DatasetError, match="does not find"):
            audit_data(CovidxCXR3DataModule(tmp_path))

    def test_wrong_settings(self, tmp_path):
        data = write_images(tmp_path, 30)
        with pytest.raises(ConfigError, match="3 folds or more"):
            audit_data(data, folds=2, pixels=False)
        with pytest.raises(ConfigError, match="max_images"):
            audit_data(data, max_images=0)


def test_findings_are_probed_one_by_one(tmp_path, monkeypatch):
    data = write_images(tmp_path, 80)
    records = [
        replace(record, label=None, findings={"Edema": number % 4 < 2, "Mass": number % 7 < 3, "Rare": number == 0})
        for number, record in enumerate(data.unsplit_records())
    ]
    monkeypatch.setattr(data, "unsplit_records", lambda: records)
    audit = audit_data(data, pixels=False)
    assert [target.name for target in audit.targets] == ["Edema", "Mass"]
    assert list(audit.targets[0].images) == ["no Edema", "Edema"]
    assert "3 findings" in " ".join(audit.notes)
    assert audit.leakage.contradictory == {}
    assert len(make_page(audit).sections) > 5


def test_a_compact_copy_has_no_header(tmp_path):
    prepare_dataset(write_images(tmp_path / "images", 40, plant=mode), tmp_path / "copy", image_size=(32, 32))
    copy = CSVDataModule(tmp_path / "copy", image_size=(32, 32))
    audit = audit_data(copy, segmenter=None, duplicates=False)
    assert audit.skipped["header"] == "a compact copy"
    assert alarms(audit) == set()
    assert any("compact copy" in note for note in audit.notes)


def test_headers(tmp_path):
    import pydicom
    from pydicom.data import get_testdata_file

    Image.fromarray(draw_image(0)).save(tmp_path / "image.jpg", quality=60, dpi=(72, 72))
    Image.fromarray(draw_image(0)).save(tmp_path / "image.png")
    jpeg, png = read_header(tmp_path / "image.jpg"), read_header(tmp_path / "image.png")
    assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "L", (40, 32))
    assert jpeg.quantization > 0 == png.quantization
    assert "dpi" in jpeg.entries.split()
    assert png.file_bytes == (tmp_path / "image.png").stat().st_size
    path = Path(str(get_testdata_file("CT_small.dcm")))
    header = read_header(path)
    data = pydicom.dcmread(path)
    assert (header.format, header.mode) == ("DICOM", f"MONOCHROME2/{data.BitsStored}")
    assert data.Manufacturer in header.entries


def test_a_shortcut_within_one_source(tmp_path):
    """Source and label are independent; a marker is in the images of one source only."""

    def mark(pixels: np.ndarray, row: Row) -> np.ndarray:
        return marker(pixels, row) if row["source"] == "north" else pixels

    audit = audit_data(write_images(tmp_path, 160, plant=mark), segmenter=None, duplicates=False)
    within = audit.targets[0].within
    assert set(within) == {"source north", "source south"}
    assert "corners" in {score.probe.name for score in within["source north"] if score.alarm}
    assert not [score for score in within["source south"] if score.alarm]
    assert any("within source north" in finding for finding in audit.findings)


def run_verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["audit", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 60, plant=source)
    words = ["--data", "csv", "--data.root", "images", "--no-pixels"]
    code, out, _ = run_verb(capsys, *words)
    assert code == 0
    assert "The source of an image alone separates" in out.splitlines()[0]
    assert "stands out" in out
    written = json.loads((tmp_path / "audit" / "csv" / "audit.json").read_text())
    assert written["questions"][0]["probes"][0]["alarm"] is True
    page = (tmp_path / "audit" / "csv" / "audit.html").read_text()
    assert written["verdict"] in page
    assert page.count("<section") >= 6
    code, out, _ = run_verb(capsys, *words, "--json", "--out", "other", "--data.label_map", '{"normal": "none"}')
    assert json.loads(out)["questions"][0]["films"].keys() == {"covid19", "none"}
    assert (tmp_path / "other" / "audit.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a data set"),
        (["--data", "csvv"], "There is no data set 'csvv'"),
        (["--data", "csv", "--data.root", "nowhere"], "nowhere"),
        (["--data", "csv", "--trainer.max_epochs", "3"], "has no option --trainer.max_epochs"),
    ],
)
def test_the_verb_says_what_is_wrong_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_verb(capsys, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.real
class TestRealImages:
    @pytest.mark.slow
    def test_covidx(self, real_data, tmp_path):
        for name in ("train_COVIDx9B.txt.gz", "test_COVIDx9B.txt"):
            (tmp_path / name).symlink_to(real_data / "layouts" / "covidx_cxr3" / name)
        audit = audit_data(CovidxCXR3DataModule(tmp_path))
        source = next(score for score in audit.targets[0].official if score.probe.name == "source")
        assert (source.accuracy.value, source.accuracy.count) == (1, 400)
        assert 0.98 < source.accuracy.low < 1  # 400 of 400
        assert len(audit.leakage.contradictory) == 10
        assert audit.leakage.random["positive"].share == pytest.approx(0.9, abs=0.02)
        assert audit.leakage.random["negative"].share < 0.03
        assert audit.missing == audit.images == 30386
        for words in (
            "source alone is right on 100.0%",
            "10 patients have images of more than one label",
            "of positive",
        ):
            assert any(words in finding for finding in audit.findings)
        (pair,) = audit.targets[0].by_source.pairs
        assert pair.supported == ["cohen", "actmed"]

    def test_darkcovidnet_without_its_pixels(self, real_data):
        audit = audit_data(DarkCovidNetDataModule(real_data), pixels=False)
        assert "source of an image alone" in audit.verdict
        assert "image shape" in audit.verdict
        shape = audit.targets[0].get("shape")
        assert shape.best[0] == "covid19"
        assert shape.best[1].value > 0.95
        assert shape.best[1].low > 0.8  # of 51 patients, widened as those of all probes
        assert "only pneumonia against normal (within nih: 100% of their images)" in audit.verdict
