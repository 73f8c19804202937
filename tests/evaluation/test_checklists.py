"""Reporting checklists: every item of the guidelines is there, and nothing is said that the run does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidcxr.cli import main
from covidcxr.errors import UnknownNameError
from covidcxr.evaluation.predictions.run_pipeline import write_rows
from covidcxr.evaluation.report import Provenance, evaluate_rows, fill_checklist
from covidcxr.evaluation.report.checklists import _FACTS, CHECKLISTS, _rows


def rows(images: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image_id": f"{n}",
            "patient_id": f"p{n // 2}",
            "label": "ab"[n // 2 % 2],
            "probability_b": float(rng.beta(2 + 2 * (n // 2 % 2), 3)),
            "sex": "FM"[n % 2],
        }
        for n in range(images)
    ]


NUMBERS = {
    "claim": " ".join(str(number) for number in range(1, 45)),
    "tripod": (
        "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 18a 18b "
        "18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
    ),
    "stard": (
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15a 15b 15c 15d 16a 16b 16c 17a 17b 18 19 20 21 22 23 24 25 26a 26b 27 28 "
        "29 30 31 32 33 34 35 36 37 38 39 40a 40b"
    ),
}


@pytest.mark.parametrize("name", CHECKLISTS)
def test_every_item_of_the_guideline_is_there_and_its_facts_are_known(name: str) -> None:
    items = _rows(name)
    assert " ".join(item["number"] for item in items) == NUMBERS[name]
    assert {fact for item in items for fact in item["facts"].split(",") if fact} <= set(_FACTS)
    assert all(item["item"] and item["section"] for item in items)


def test_a_bare_table_leaves_to_a_person_what_it_does_not_know() -> None:
    evaluation = evaluate_rows(rows(), positive="b", resamples=20)
    items = {item.number: item for item in fill_checklist(evaluation, "claim").items}
    assert items["44"].state == "person"
    assert items["22"].state == "person"  # no model is known
    assert items["29"].answers == {"lineage": "95 % intervals over patients; 20 resamples, seed 0."}
    assert items["35"].answers["films, patients"].startswith("Scored: 60 images of 30 patients")
    assert items["28"].state == "partly"
    assert items["28"].left == "why these"


def test_a_run_fills_more_and_the_json_of_a_report_fills_the_same() -> None:
    counts = {"train": {"films": 90, "patients": 40, "sources": 1}}
    lineage = Provenance(
        "covidcxr evaluate x", {"name": "ours", "license": "CC0", "counts": counts}, {"source": "mini"}
    )
    evaluation = evaluate_rows(rows(), positive="b", resamples=20, parts={"lineage": lineage})
    filled = fill_checklist(evaluation, "tripod")
    items = {item.number: item for item in filled.items}
    assert "source: mini" in items["22"].answers["lineage.model"]
    assert items["18e"].answers == {"lineage.data": "license: CC0."}
    assert "train 90 images of 40 patients." in items["20a"].answers["films, patients"]
    assert fill_checklist(json.loads(json.dumps(evaluation.to_dict())), "tripod") == filled


def test_an_unknown_checklist_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="stard"):
        fill_checklist({}, "start")


def test_the_command_writes_checklists_beside_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(rows(), tmp_path / "rows.csv")
    words = [
        "evaluate",
        str(tmp_path / "rows.csv"),
        "--positive",
        "b",
        "--resamples",
        "20",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--checklist", "stard", "--checklist", "claim"]) == 0
    assert "Checklist claim: " in capsys.readouterr().out
    text = (tmp_path / "o" / "checklist-stard.md").read_text(encoding="utf-8")
    assert "FOR A PERSON TO FILL IN" in text
    assert "(report.json: classes.confusion)" in text
    plain = json.loads((tmp_path / "o" / "checklist-claim.json").read_text())
    assert plain["guideline"].startswith("CLAIM 2024")
    assert {item["state"] for item in plain["items"]} == {"run", "partly", "person"}
