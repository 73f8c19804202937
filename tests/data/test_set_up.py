"""Setting up a large data set: nothing is opened, and a record costs the same in a large set as in a small one."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import write_csv

from covidcxr.data import CSVDataModule
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.errors import DatasetError, ImageReadError

FEW, MANY = 500, 2000


def write_empty_images(root: Path, records: int) -> Path:
    """Images and masks that are there, and empty: who opens one gets an error."""
    rows = []
    for number in range(records):
        name = f"{number // 500}/{number}.png"
        for kind in ("images", "masks"):
            (root / kind / str(number // 500)).mkdir(parents=True, exist_ok=True)
            (root / kind / name).touch()
        row = {"path": f"images/{name}", "label": "abc"[number % 3], "patient_id": f"p{number // 2}"}
        rows.append(row | {"source": f"s{number % 7}", "view": "PA", "mask": f"masks/{name}"})
    write_csv(root / "manifest.csv", rows)
    return root


def set_up(root: Path) -> CSVDataModule:
    module = CSVDataModule(root, mask_columns={"lung": "mask"}, region="lungs", mask_classes=["lung"])
    module.setup()
    return module


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {count: write_empty_images(tmp_path_factory.mktemp(str(count)), count) for count in (FEW, MANY)}


def memory(task: Callable[[], object]) -> int:
    """Bytes that the result holds."""
    tracemalloc.start()
    try:
        result = task()
        held = tracemalloc.get_traced_memory()[0]
        assert result is not None
        return held
    finally:
        tracemalloc.stop()


def seconds(task: Callable[[], object]) -> float:
    """CPU time, the shortest of some: other processes only ever add to it."""
    times = []
    for _ in range(4):
        start = time.process_time()
        task()
        times.append(time.process_time() - start)
    return min(times)


def test_no_image_is_opened(roots):
    module = set_up(roots[FEW])
    assert len(module.records) == FEW
    assert sum(sum(part.values()) for part in module.counts("mask").values()) == FEW
    with pytest.raises(ImageReadError, match="is empty"):
        module.train_dataset[0]


def test_a_record_costs_the_same_in_a_large_set(roots):
    set_up(roots[FEW])
    few, many = (memory(lambda root=roots[count]: set_up(root)) / count for count in (FEW, MANY))
    assert many < 1.3 * few
    assert many < 3000
    few, many = (seconds(lambda root=roots[count]: set_up(root)) / count for count in (FEW, MANY))
    assert many < 2.5 * few


def test_the_search_for_cycles_is_paused_and_goes_on(roots, monkeypatch):
    seen: list[bool] = []
    monkeypatch.setattr(CSVDataModule, "find_missing", lambda self, records: seen.append(gc.isenabled()) or [])
    set_up(roots[FEW])
    assert seen == [False]
    assert gc.isenabled()
    (roots[FEW] / "short.csv").write_text("path,label\na.png\n")
    with pytest.raises(DatasetError, match="has 1 fields"):
        CSVDataModule(roots[FEW], table="short.csv", patient_column=None).setup()
    assert gc.isenabled()


def test_reports_stay_small_where_every_image_is_broken(roots, tmp_path):
    report = check_dataset(set_up(roots[FEW]))
    assert len(report.faults) == 2 * FEW  # each image, each mask
    with pytest.raises(DatasetError, match="Not one of 500 images"):
        prepare_dataset(set_up(roots[FEW]), tmp_path / "copy")
