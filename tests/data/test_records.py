"""Records and splits: patients whole, classes in proportion, the same everywhere."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidcxr.data import Record, assign_splits, count_by, find_leaks, k_folds, take_fold
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError


def make_records(patients: int = 200, seed: int = 0) -> list[Record]:
    """Patients with 1 to 5 images, three classes of very different size, three sources."""
    rng = random.Random(seed)
    records = []
    for patient in range(patients):
        label = rng.choices(["normal", "pneumonia", "covid19"], [6, 3, 1])[0]
        source = rng.choice(["a", "b", "c"])
        for image in range(rng.randint(1, 5)):
            masks = {"lung": Path(f"m{patient}_{image}.png")} if rng.random() < 0.2 else {}
            records.append(Record(Path(f"{patient}_{image}.png"), label, f"p{patient}", source, mask_paths=masks))
    return records


def by_id(records: list[Record]) -> dict[str, str | None]:
    return {record.image_id: record.split for record in records}


class TestRecord:
    def test_patient_ids_lose_their_blanks(self):
        assert Record(Path("a.png"), patient_id=" 12 ") == Record(Path("a.png"), patient_id="12")
        assert Record(Path("a.png"), patient_id="  ", label="").patient_id is None

    def test_a_image_without_patient_stands_for_its_own(self):
        assert Record(Path("x/a.png")).patient == "x/a.png"
        assert Record(Path("x/a.png"), patient_id="7").patient == "7"

    def test_is_frozen_hashable_and_survives_a_process_border(self):
        record = Record(Path("a.png"), "normal", mask_paths={"lung": Path("m.png")}, box=(0, 0, 4, 5))
        assert pickle.loads(pickle.dumps(record)) == record
        assert len({record, record}) == 1
        with pytest.raises(AttributeError):
            record.label = "covid19"

    @pytest.mark.parametrize("box", [(5, 0, 4, 9), (0, 0, 0, 1), (-1, 0, 4, 4)])
    def test_refuses_an_empty_box(self, box):
        with pytest.raises(DatasetError, match="top, left, bottom, right"):
            Record(Path("a.png"), box=box)

    def test_refuses_an_unknown_split(self):
        with pytest.raises(DatasetError, match=r"a\.png"):
            Record(Path("a.png"), split="validation")

    def test_counts(self):
        records = [Record(Path("a"), "x", view="PA"), Record(Path("b"), "y"), Record(Path("c"), "y")]
        assert list(count_by(records, "label").items()) == [("y", 2), ("x", 1)]
        assert count_by(records, "view") == {"unknown": 2, "PA": 1}
        assert count_by([replace(records[0], mask_paths={"lung": Path("m"), "infection": Path("n")})], "mask") == {
            "infection": 1,
            "lung": 1,
        }
        with pytest.raises(ConfigError, match="'label'"):
            count_by(records, "labels")


class TestAssignSplits:
    def test_no_patient_is_torn_apart(self):
        records = assign_splits(make_records())
        assert not find_leaks(records)
        assert {record.split for record in records} == {"train", "val", "test"}

    @pytest.mark.parametrize("field", ["label", "source"])
    @pytest.mark.parametrize("fractions", [(0.7, 0.15), (0.5, 0.25), (0.8, 0.1)])
    def test_everything_is_in_proportion(self, field, fractions):
        records = assign_splits(make_records(600), fractions)
        whole = count_by(records, field)
        for split, share in zip(("train", "val", "test"), (*fractions, 1 - sum(fractions)), strict=True):
            part = count_by([record for record in records if record.split == split], field)
            for value, count in whole.items():
                # A patient has up to 5 images, so no part can be filled to the image.
                assert abs(part[value] - share * count) <= max(5, 0.02 * count), (split, value)

    def test_findings_are_in_proportion_though_few_patients_have_most(self):
        rng = random.Random(0)
        records = []
        for patient in range(1000):
            severe = patient % 10 == 0  # many images, and nearly all of the rare finding
            for image in range(20 if severe else 2):
                shown = {"effusion": rng.random() < 0.5, "drain": severe and rng.random() < 0.8}
                records.append(Record(Path(f"{patient}_{image}.png"), patient_id=f"{patient}", findings=shown))
        parts = assign_splits(records)
        whole = count_by(parts, "label")
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            images = [record for record in parts if record.split == split]
            assert all(abs(count_by(images, "label")[name] / whole[name] - share) < 0.02 for name in whole)

    def test_keeps_the_order_and_everything_else(self):
        before = make_records(30)
        after = assign_splits(before)
        assert [replace(record, split=None) for record in after] == before

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=10, deadline=None)
    def test_does_not_depend_on_the_order(self, rng):
        records = make_records(40)
        shuffled = rng.sample(records, len(records))
        assert by_id(assign_splits(records)) == by_id(assign_splits(shuffled))

    def test_does_not_depend_on_where_the_files_lie(self):
        here = [replace(r, patient_id=None, image_id=f"x/{r.image_path.name}") for r in make_records(40)]
        there = [replace(r, image_path=Path("/elsewhere") / r.image_path) for r in here]
        assert by_id(assign_splits(here)) == by_id(assign_splits(there))

    def test_seeds_differ(self):
        records = make_records()
        assert by_id(assign_splits(records, seed=0)) == by_id(assign_splits(records, seed=0))
        assert by_id(assign_splits(records, seed=0)) != by_id(assign_splits(records, seed=1))

    def test_unknown_patients_are_groups_of_one(self):
        records = [Record(Path(f"{i}.png"), "x") for i in range(100)]
        assert count_by(assign_splits(records), "split") == {"train": 70, "val": 15, "test": 15}

    def test_another_group(self):
        records = assign_splits([Record(Path(f"{i}.png"), source=f"s{i % 9}") for i in range(90)], group="source")
        assert all(len({r.split for r in records if r.source == f"s{i}"}) == 1 for i in range(9))

    @pytest.mark.parametrize(
        ("fractions", "expected"),
        [
            ((1.0, 0.0), {"train"}),
            ((0.0, 0.0), {"test"}),
            ((0.5, 0.5), {"train", "val"}),
            ((0.8, 0.0), {"train", "test"}),
        ],
    )
    def test_a_share_of_nothing_gets_nothing(self, fractions, expected):
        assert {record.split for record in assign_splits(make_records(50), fractions)} == expected

    def test_large_groups_go_where_there_is_room(self):
        big = [Record(Path(f"big{i}"), "x", "big") for i in range(60)]
        small = [Record(Path(f"s{i}"), "x", f"s{i}") for i in range(40)]
        records = assign_splits(big + small, (0.7, 0.15))
        assert {record.split for record in records if record.patient_id == "big"} == {"train"}
        assert count_by(records, "split") == {"train": 70, "val": 15, "test": 15}


class TestOfficialSplits:
    def test_complete_ones_are_kept(self):
        records = [replace(r, split=("train", "val", "test")[i % 3]) for i, r in enumerate(make_records(9))]
        assert assign_splits(records) == records

    def test_a_missing_validation_is_cut_from_training(self):
        records = [replace(r, split="test" if int(r.patient_id[1:]) < 40 else "train") for r in make_records(200)]
        after = assign_splits(records, (0.7, 0.3))
        assert all(a.split == "test" for a, b in zip(after, records, strict=True) if b.split == "test")
        rest = [a.split for a, b in zip(after, records, strict=True) if b.split == "train"]
        assert set(rest) == {"train", "val"}
        assert abs(rest.count("val") / len(rest) - 0.3) < 0.02
        assert not find_leaks(after)

    def test_a_missing_test_is_cut_from_training(self):
        records = [replace(r, split="val" if int(r.patient_id[1:]) < 20 else "train") for r in make_records()]
        after = assign_splits(records)
        assert {a.split for a, b in zip(after, records, strict=True) if b.split == "train"} == {"train", "test"}

    def test_a_lone_training_part_is_no_split(self):
        records = make_records(50)
        assert by_id(assign_splits([replace(r, split="train") for r in records])) == by_id(assign_splits(records))

    def test_images_without_split_follow_their_patient(self):
        records = [
            Record(Path("a"), "x", "1", split="test"),
            Record(Path("b"), "x", "1"),
            *(Record(Path(f"t{i}"), "x", f"t{i}", split="train") for i in range(20)),
        ]
        assert by_id(assign_splits(records))["b"] == "test"

    def test_leaks_stay_as_published_and_are_found(self):
        records = [
            Record(Path("a"), "x", "1", split="test"),
            Record(Path("b"), "x", "1", split="train"),
            *(Record(Path(f"t{i}"), "x", f"t{i}", split="train") for i in range(20)),
        ]
        after = assign_splits(records)
        assert [record.split for record in after[:2]] == ["test", "train"]
        assert find_leaks(after) == {"1": {"test", "train"}}


class TestHeldOutSource:
    def test_the_source_is_the_test_split(self):
        records = assign_splits(make_records(), hold_out_source="b")
        assert {r.split for r in records if r.source == "b"} == {"test"}
        assert {r.split for r in records if r.source != "b"} == {"train", "val"}

    def test_several_sources(self):
        records = assign_splits(make_records(), hold_out_source=["a", "b"])
        assert all((r.split == "test") == (r.source in "ab") for r in records)

    def test_a_patient_with_images_there_goes_there_whole(self):
        records = [
            *make_records(),
            Record(Path("x"), "normal", "both", "a"),
            Record(Path("y"), "normal", "both", "b"),
        ]
        assert {r.split for r in assign_splits(records, hold_out_source="b") if r.patient_id == "both"} == {"test"}

    def test_official_splits_are_set_aside(self):
        records = [replace(r, split="test" if r.source == "a" else "train") for r in make_records()]
        after = assign_splits(records, hold_out_source="b")
        assert {r.split for r in after if r.source == "a"} == {"train", "val"}

    def test_an_unknown_source(self):
        with pytest.raises(DatasetError, match="'hannover'"):
            assign_splits([Record(Path("a"), source="hannover")], hold_out_source="hanover")


class TestFolds:
    @pytest.mark.parametrize("k", [3, 5, 10])
    def test_every_image_is_tested_once_and_validated_once(self, k):
        records = make_records()
        folds = k_folds(records, k)
        assert len(folds) == k
        for split, times in (("test", 1), ("val", 1), ("train", k - 2)):
            seen = Counter(record.image_id for fold in folds for record in fold if record.split == split)
            assert seen == {record.image_id: times for record in records}

    def test_patients_are_whole_and_classes_in_proportion(self):
        records = make_records(400)
        whole = count_by(records, "label")
        for fold in k_folds(records, 5):
            assert not find_leaks(fold)
            part = count_by([record for record in fold if record.split == "test"], "label")
            assert all(abs(part[label] - count / 5) <= 3 for label, count in whole.items())

    def test_one_fold_is_the_same_as_of_all(self):
        records = make_records(50)
        assert take_fold(records, 4, 2, seed=3) == k_folds(records, 4, seed=3)[2]

    def test_order_and_seed(self):
        records = make_records(50)
        assert by_id(k_folds(records, 4)[0]) == by_id(k_folds(records[::-1], 4)[0])
        assert by_id(k_folds(records, 4)[0]) != by_id(k_folds(records, 4, seed=1)[0])

    def test_more_folds_than_patients(self):
        with pytest.raises(DatasetError, match="3 patients"):
            k_folds([Record(Path(f"{i}"), patient_id=str(i % 3)) for i in range(9)], 4)

    @pytest.mark.parametrize(("k", "fold"), [(2, 0), (5, 5), (5, -1)])
    def test_no_such_fold(self, k, fold):
        with pytest.raises(ConfigError, match=r"[Ff]old"):
            take_fold(make_records(20), k, fold)


@pytest.mark.parametrize("fractions", [(0.9, 0.2), (-0.1, 0.5), (1.1, 0.0)])
def test_fractions_out_of_range(fractions):
    with pytest.raises(ConfigError, match="fractions"):
        assign_splits(make_records(5), fractions)


def test_nothing_to_split():
    with pytest.raises(DatasetError, match="no records"):
        assign_splits([])
    with pytest.raises(DatasetError, match="no records"):
        k_folds([], 3)


def test_no_such_group():
    with pytest.raises(ConfigError, match="'patient_id'"):
        assign_splits(make_records(5), group="patient")


def test_split_names():
    assert [split_name(text) for text in ("Train", "valid", "Validation", "TEST")] == ["train", "val", "val", "test"]
    with pytest.raises(DatasetError, match="'train'"):
        split_name("trian")
