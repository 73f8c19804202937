"""Slices: a planted weak group is found, by its two attributes; where none is worse, none is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from covidcxr.errors import ConfigError
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.report import find_slices, score_groups
from covidcxr.page import sections_of


def draw(
    seed: int, patients: int = 250, weak: Mapping[str, str] | None = None, mix: float = 0.5, ill_in_ward: float = 0.5
) -> PredictionTable:
    """Patients with 1 to 3 alike images; those with the `weak` attributes are guessed."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        traits: dict[str, Any] = {
            "source": str(rng.choice(["north", "south", "west"])),
            "view": str(rng.choice(["PA", "AP"])),
            "sex": str(rng.choice(["F", "M"])),
            "age": float(rng.integers(20, 90)),
            "device": str(rng.choice(["a", "b", "c"])),
        }
        ill = rng.random() < (ill_in_ward if traits["source"] == "west" else mix)
        own, guessed = rng.normal(), weak is not None and all(traits[name] == value for name, value in weak.items())
        for image in range(int(rng.integers(1, 4))):
            skill = 0 if guessed else 1.5 if ill else -1.0
            chance = 1 / (1 + math.exp(-(skill + 0.7 * own + 0.7 * rng.normal())))
            truth = {"image_id": f"{patient}-{image}", "patient_id": patient, "label": "ill" if ill else "well"}
            rows.append(
                {**truth, "probability_ill": chance, "probability_well": 1 - chance, "dark": rng.random(), **traits}
            )
    return PredictionTable.read(rows)


def test_a_planted_group_of_two_attributes_is_found_and_nothing_else() -> None:
    weak = {"view": "AP", "device": "c"}
    search = find_slices(draw(1, 300, weak), positive=0)
    assert search.attributes == ("source", "view", "sex", "age", "decade of age", "dark", "device")
    assert {frozenset(found.attributes.items()) for found in search.slices} == {frozenset(weak.items())}
    found = search.slices[0]
    assert found.score == "auroc_ill"
    assert found.difference.value == pytest.approx(found.inside.value - found.outside.value)
    assert found.difference.low < -0.45 < found.difference.high < 0
    assert found.p < 0.05
    plain = search.to_dict()
    assert json.loads(json.dumps(plain))["slices"][0]["attributes"] == weak
    assert plain["tried"] == search.tried > 100


def test_a_weak_value_of_one_attribute_is_told_as_that_not_by_its_parts() -> None:
    search = find_slices(draw(2, 300, {"source": "south"}), positive=0)
    assert {found.title for found in search.slices} == {"source south"}


def test_a_group_of_other_patients_is_not_taken_for_a_worse_one() -> None:
    # Sensitivity is above specificity here: where few are ill, accuracy is lower.
    assert find_slices(draw(3, 300, ill_in_ward=0.15), positive=0).slices == ()


def test_masks_are_searched_too() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "patient_id": n,
            "view": "PA" if n % 2 else "AP",
            "scanner": str(n),
            "dice_lung": float(np.clip(rng.normal(0.93 if n % 2 else 0.85, 0.03), 0, 1)),
        }
        for n in range(80)
    ]
    search = find_slices(PredictionTable.read(rows))
    assert search.attributes == ("view", "scanner")  # numbers, in thirds
    assert [(found.title, found.score) for found in search.slices] == [("view AP", "rest_lung")]


def test_groups_of_few_patients_and_free_text_are_left_out() -> None:
    rows = [
        {"label": "ab"[n % 2], "patient_id": n // 10, "probability_a": 0.5, "view": "PAL"[n % 3], "note": f"no. {n}"}
        for n in range(90)
    ]
    search = find_slices(PredictionTable.read(rows), positive=0)  # 90 images, but 9 patients
    assert search.tried == 0
    assert search.attributes == ("view",)
    with pytest.raises(ConfigError, match="least"):
        find_slices(PredictionTable.read(rows), least=1)


def test_the_section_of_groups_shows_what_was_found() -> None:
    found = sections_of(score_groups(draw(1, 300, {"view": "AP", "device": "c"}), positive=0, resamples=20))[0]
    table: Any = found.blocks[-1]
    assert table.columns[0] == "group"
    assert table.rows[0][0] == "view AP, device c"
    none: Any = sections_of(score_groups(draw(5), positive=0, resamples=20))[0].blocks[-1]
    assert "none does clearly worse than the rest" in none.text


@pytest.mark.slow
def test_no_group_is_found_in_forty_data_sets_without_any() -> None:
    assert [len(find_slices(draw(seed), positive=0).slices) for seed in range(100, 140)] == [0] * 40
