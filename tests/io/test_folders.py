"""Folders of results: one run, one process, and nothing outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covidcxr.errors import ConfigError
from covidcxr.io import lock_folder, path_inside, replace_file, run_folder, write_json

WRITES = ("table.json", "pictures/*.png")


@pytest.mark.parametrize("name", ["a.png", "ward 3/ä.png", ".hidden.png", "a..b.png", "..."])
def test_names_that_stay_inside(tmp_path: Path, name: str) -> None:
    assert path_inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.png", "a/../../b.png", "a.png./../../b", "/etc/passwd", "a\0.png", "//server/a"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="outside of"):
        path_inside(tmp_path, name)


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(path) as draft:
        draft.write_text(f"ne{1 // 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replace_file(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [float("nan"), (float("-inf"), 1.5)], "b": {"c": float("inf"), "d": "NaN"}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, [None, 1.5]], "b": {"c": None, "d": "NaN"}}


class TestLock:
    def test_one_at_a_time_and_free_afterwards(self, tmp_path: Path) -> None:
        in_use = pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on ")
        with lock_folder(tmp_path), in_use, lock_folder(tmp_path):
            pass
        with lock_folder(tmp_path):
            pass

    @pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
    def test_a_killed_process_holds_nothing(self, tmp_path: Path) -> None:
        code = f"import time; from covidcxr.io import lock_folder\nwith lock_folder({str(tmp_path)!r}): time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", code]) as holder:
            while not (tmp_path / ".covidcxr.holder.json").is_file():
                assert holder.poll() is None
                time.sleep(0.01)
            with pytest.raises(ConfigError, match=f"process {holder.pid} on "), lock_folder(tmp_path):
                pass
            holder.send_signal(signal.SIGKILL)
        with lock_folder(tmp_path):
            pass


def state_of(folder: Path) -> dict[Path, int]:
    """When each file was written; the lock's own file is nobody's result."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".covidcxr.lock")
    return {path: path.stat().st_mtime_ns for path in files}


class TestRunFolder:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A folder with the results of a run, and a file that somebody laid beside them."""
        out = tmp_path / "out"
        with run_folder(out, {"model": "a", "seed": 1}, WRITES):
            write_json(out / "table.json", {})
            (out / "pictures" / "ward").mkdir(parents=True)
            for path in ("pictures/ward/a.png", "pictures/ward/notes.txt", "mine.png", f"pictures/.{'0' * 32}.tmp"):
                (out / path).write_text("x")
        return out

    def test_the_same_run_goes_on_without_half_written_files(self, run: Path) -> None:
        before = {path for path in run.rglob("*") if path.suffix != ".tmp"}
        with run_folder(run, {"model": "a", "seed": 1}, WRITES):
            pass
        assert set(run.rglob("*")) == before

    def test_another_run_is_refused_and_changes_nothing(self, run: Path) -> None:
        before = state_of(run)
        another = run_folder(run, {"model": "b", "seed": 1, "size": 3}, WRITES)
        with pytest.raises(ConfigError, match="results of another run: what differs is model and size"), another:
            pass
        assert state_of(run) == before

    def test_overwrite_removes_what_the_run_wrote_and_nothing_else(self, run: Path) -> None:
        with run_folder(run, {"model": "b"}, ("other.json",), overwrite=True):
            left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        assert left - {".covidcxr.holder.json", ".covidcxr.lock"} == {
            "covidcxr-run.json",
            "mine.png",
            "pictures/ward/notes.txt",
        }
        with run_folder(run, {"model": "b"}, ("other.json",)):
            pass

    @pytest.mark.parametrize("name", ["table.json", "pictures"])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_files_of_unknown_origin_are_not_replaced(self, tmp_path: Path, name: str, overwrite: bool) -> None:
        (tmp_path / name).mkdir()
        run = run_folder(tmp_path, {}, WRITES, overwrite=overwrite)
        with pytest.raises(ConfigError, match=f"holds {name}, and no record"), run:
            pass

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {}, "writes": [1]}', "{"])
    def test_a_damaged_record_is_said(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "covidcxr-run.json").write_text(content)
        with pytest.raises(ConfigError, match="is damaged"), run_folder(tmp_path, {}, WRITES):
            pass

    def test_a_record_cannot_name_files_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "victim.png").write_text("x")
        out = tmp_path / "out"
        write_json(out / "covidcxr-run.json", {"settings": {}, "writes": ["../victim.png"]})
        with pytest.raises(ConfigError, match="outside of"), run_folder(out, {}, WRITES, overwrite=True):
            pass
        assert (tmp_path / "victim.png").is_file()
