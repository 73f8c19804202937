"""`covidcxr predict` over very many images: lists on the disk, Parquet, processes, shards, URLs, pages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from kill import kill_at_moments
from PIL import Image

from covidcxr.cli import main
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io import lock_folder, read_mask, write_image
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline import Pipeline, Prediction, folder, results
from covidcxr.pipeline.folder import predict_folder
from covidcxr.pipeline.prediction import FailedPrediction

LABELS = ("covid19", "normal", "pneumonia", None)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("mini")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(5):
        write_image(folder / f"ward{seed % 2}" / f"{seed}.png", draw_phantom(seed, size=(96, 80)).image)
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    return folder


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that opens no image and takes no time: the label comes from the number in the path."""

    def predict(path: Any) -> Prediction | FailedPrediction:
        number = int(re.findall(r"\d+", str(path))[-1])
        if number % 50 == 49:
            return FailedPrediction(str(path), ImageReadError("It is damaged."))
        label = LABELS[number % 4]
        shown, masks = {"covid19": 0.5, "normal": 0.25, "pneumonia": 0.25}, {"lung": np.ones((8, 8), bool)}
        reasons = () if label else ("several-answers-plausible",)
        return Prediction(str(path), label, shown, reasons, masks, np.zeros((8, 8), np.uint8))

    def predict_batches(
        self: Pipeline, images: Iterable[Any], *, batch_size: int, **settings: Any
    ) -> Iterator[list[Any]]:
        batch = []
        for path in images:
            batch.append(predict(path))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    monkeypatch.setattr(Pipeline, "predict_batches", predict_batches)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((out / "predictions").glob("*.parquet")) for row in table_of(part)]


def table_of(part: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(part).to_pylist()


def manifest(path: Path, count: int) -> Path:
    path.write_text("id,path\n" + "".join(f"study-{number:06},{number:06}.png\n" for number in range(count)))
    return path


class TestMemory:
    @pytest.mark.parametrize(
        ("form", "number"), [("jsonl", 500), pytest.param("parquet", 2000, marks=pytest.mark.slow)]
    )
    def test_it_does_not_grow_with_the_number_of_images(
        self, cheap: None, pipeline: Pipeline, tmp_path: Path, form: Any, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "_PART_IMAGES", 64)
        monkeypatch.setattr(results, "PAGE_IMAGES", 20)
        monkeypatch.setattr(folder, "fingerprint", lambda pipeline: "the same")  # takes as long as all else

        def peak(count: int) -> int:
            """Of a run, and of the same command again."""
            place = Path(tempfile.mkdtemp(dir=tmp_path))
            settings: dict[str, Any] = {"model": pipeline, "format": form, "overlays": None, "progress": False}
            settings |= {"manifest": manifest(place / "list.csv", count), "masks": form == "parquet"}
            tracemalloc.start()
            try:
                for _ in range(2):
                    assert predict_folder([], place / "out", **settings)["films"] == count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(100)  # imports
        # Of two, since a table of the interpreter that is enlarged meanwhile may take some megabytes.
        few, many = (min(peak(count), peak(count)) for count in (200, 200 + number))
        assert many - few < number * 150, (few, many)  # an entry takes 1000 bytes, a path with its name 300

    def test_a_list_of_many_files(self, tmp_path: Path) -> None:
        from covidcxr.pipeline.image_list import ImageList, find_images

        for number in range(3000):
            place = tmp_path / f"{number % 3}" / f"{number}.png"
            place.parent.mkdir(exist_ok=True)
            place.touch()
        tracemalloc.start()
        images = ImageList()
        images.add_paths([tmp_path])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000, peak
        assert [path for path, _ in images] == sorted(tmp_path.rglob("*.png"))
        assert [path for path, _ in find_images([tmp_path])[0]] == sorted(tmp_path.rglob("*.png"))


class TestManifest:
    @pytest.fixture
    def listed(self, cheap: None, pipeline: Pipeline, tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
        def names(text: str, name: str = "list.csv", **settings: Any) -> list[tuple[str, str]]:
            (tmp_path / name).write_text(text)
            out = tmp_path / "out"
            shutil.rmtree(out, ignore_errors=True)
            predict_folder([], out, manifest=tmp_path / name, model=pipeline, overlays=None, progress=False, **settings)
            return [(line["name"], line["image_id"].removeprefix(f"{tmp_path}/")) for line in lines_of(out)]

        return names

    def test_ids_and_paths(self, listed: Any, tmp_path: Path) -> None:
        assert listed("path,id,label\na/1.png,x,\n2.png,NA,\n") == [("x", "a/1.png"), ("NA", "2.png")]
        assert listed("path\na/1.png\n2.png\n") == [("a/1.png", "a/1.png"), ("2.png", "2.png")]
        assert listed("a/1.png\n\n2.png\n", "list.txt") == [("a/1.png", "a/1.png"), ("2.png", "2.png")]
        assert listed("x\ta/1.png\n2.png\n", "list.txt") == [("x", "a/1.png"), ("2.png", "2.png")]
        assert listed("/elsewhere/1.png\n", "list.txt") == [("elsewhere/1.png", "/elsewhere/1.png")]
        assert listed("1.png\n", "list.txt", root="/data") == [("1.png", "/data/1.png")]

    def test_parquet(self, cheap: None, pipeline: Pipeline, tmp_path: Path) -> None:
        table = pyarrow.table({"path": ["1.png", "2.png"], "id": [7, 8]})
        pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
        predict_folder([], tmp_path / "out", manifest=tmp_path / "list.parquet", model=pipeline, progress=False)
        assert [line["name"] for line in lines_of(tmp_path / "out")] == ["7", "8"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,id\n1.png,x\n2.png,X\n", "Line 3 of .*the id 'X' is there twice, or differs in its case"),
            ("path,id\n,x\n", "Line 2 of .*names no image"),
            ("file\n1.png\n", "no column 'path'"),
            ("path\n", "No images found"),
        ],
    )
    def test_faults(self, listed: Any, text: str, message: str) -> None:
        with pytest.raises(Exception, match=message):
            listed(text)

    def test_neither_paths_nor_manifest(self, capsys: Any) -> None:
        assert main(["predict", "--out", "x"]) == 2
        assert "--manifest" in capsys.readouterr().err


class TestParquet:
    def test_it_holds_what_the_files_hold(self, pipeline: Pipeline, images: Path, tmp_path: Path) -> None:
        for form in ("jsonl", "parquet"):
            predict_folder([images], tmp_path / form, model=pipeline, format=form, progress=False)
        rows = {row["name"]: row for row in rows_of(tmp_path / "parquet")}
        assert len(rows) == 6
        for line in lines_of(tmp_path / "jsonl"):
            row = rows[line["name"]]
            if "error" in line:
                assert row["error"] == line["error"]
                continue
            assert {name: row[f"probability_{name}"] for name in line["probabilities"]} == line["probabilities"]
            interval = line["infected_interval"] or [None, None]
            assert [row["infected_fraction_low"], row["infected_fraction_high"]] == interval
            for name, area in line["mask_areas"].items():
                mask = np.asarray(Image.open(BytesIO(row[f"mask_{name}"])))
                assert (mask == read_mask(tmp_path / "jsonl" / "films" / f"{line['name']}.{name}.png")).all()
                assert mask.sum() == area == row[f"area_{name}"]
            assert (tmp_path / "parquet" / row["overlay"]).is_file()
        written = {path.suffix for path in (tmp_path / "parquet" / "films").rglob("*") if path.is_file()}
        assert written == {".jpg"}
        summaries = [json.loads((tmp_path / form / "summary.json").read_text()) for form in ("jsonl", "parquet")]
        for summary in summaries:
            del summary["page"], summary["predictions"]
        assert summaries[0] == summaries[1]
        pages = [(tmp_path / form / "index.html").read_text().count("<img") for form in ("jsonl", "parquet")]
        assert pages == [5, 5]

    @pytest.mark.parametrize("moment", ["before the file", "before the lines go"])
    def test_killed_while_lines_become_a_file(
        self, cheap: None, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        class Stop(BaseException):
            pass

        def write(self: Any, path: Path, rows: Any) -> None:
            if path.name == "part-000001.parquet":
                if moment == "before the lines go":
                    original(self, path, rows)
                raise Stop
            original(self, path, rows)

        original = results.ParquetResults._write
        monkeypatch.setattr(results, "_PART_IMAGES", 20)
        names, out = manifest(tmp_path / "list.csv", 120), tmp_path / "out"
        settings: dict[str, Any] = {"manifest": names, "model": pipeline, "format": "parquet", "overlays": None}
        settings |= {"batch_size": 8, "progress": False}
        with monkeypatch.context() as patch:
            patch.setattr(results.ParquetResults, "_write", write)
            with pytest.raises(Stop):
                predict_folder([], out, **settings)
        assert predict_folder([], out, **settings)["films"] == 120
        assert sorted(row["name"] for row in rows_of(out)) == [f"study-{number:06}" for number in range(120)]
        assert {row["name"] for row in table_of(out / "predictions" / "failed.parquet")} == {
            "study-000049",
            "study-000099",
        }
        before = {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("part*")}
        assert predict_folder([], out, **settings)["failed"] == 2, "they are tried again"
        assert before == {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("part*")}
        assert len(rows_of(out)) == 120


class TestShards:
    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_they_come_together(self, cheap: None, pipeline: Pipeline, tmp_path: Path, form: Any) -> None:
        names = manifest(tmp_path / "list.csv", 120)
        settings: dict[str, Any] = {"manifest": names, "model": pipeline, "format": form, "progress": False}
        out = tmp_path / "out"
        for number in (1, 3):
            assert predict_folder([], out, shard=f"{number}/3", **settings)["films"] == 40
        whole = predict_folder([], tmp_path / "whole", **settings)
        together = predict_folder([], out, **settings)  # the second shard is lacking
        kinds = ("films", "failed", "answers", "reasons")
        assert {kind: whole[kind] for kind in kinds} == {kind: together[kind] for kind in kinds}
        entries = lines_of(out) if form == "jsonl" else rows_of(out)
        assert sorted(entry["name"] for entry in entries) == [f"study-{number:06}" for number in range(120)]
        folders = Counter(entry.get("folder") for entry in entries if not entry.get("error"))
        assert set(folders) == {None, "shards/1-of-3", "shards/3-of-3"}
        if form == "jsonl":
            assert entries == sorted(entries, key=lambda entry: entry["name"])
            for entry in entries:
                assert "error" in entry or (out / entry.get("folder", "") / f"films/{entry['name']}.json").is_file()
        page = (out / "index.html").read_text()
        pictures = re.findall('src="([^"]+)"', page)
        assert len(pictures) == 118
        assert all((out / picture).is_file() for picture in pictures)
        assert predict_folder([], out, **settings) == together

    def test_more_shards_than_images(self, cheap: None, pipeline: Pipeline, tmp_path: Path) -> None:
        names = manifest(tmp_path / "list.csv", 2)
        assert predict_folder([], tmp_path / "out", manifest=names, model=pipeline, shard="3/3")["films"] == 0

    @pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "1/0", "1"])
    def test_no_such_shard(self, images: Path, tmp_path: Path, shard: str) -> None:
        with pytest.raises(ConfigError, match="A shard is I/N"):
            predict_folder([images], tmp_path / "out", shard=shard)

    def test_the_command_line(self, images: Path, tmp_path: Path, capsys: Any) -> None:
        assert main(["predict", str(images), "--shard", "1/2"]) == 2
        assert "name it by --out" in capsys.readouterr().err
        for shard in (["--shard", "1/2"], ["--shard", "2/2"], []):
            assert main(["predict", str(images), "--out", str(tmp_path / "out"), "--json", *shard]) in (0, 1)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["films"] == 6

    def test_one_at_work_and_one_of_another_model(self, cheap: None, pipeline: Pipeline, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"manifest": manifest(tmp_path / "list.csv", 4), "progress": False}
        out = tmp_path / "out"
        predict_folder([], out, shard="1/2", model=pipeline, **settings)
        with lock_folder(out / "shards" / "1-of-2"), pytest.raises(ConfigError, match="1-of-2 is in use"):
            predict_folder([], out, model=pipeline, **settings)
        other = Pipeline.from_pretrained("mini")
        other.min_lung_area = 0.2
        with pytest.raises(ConfigError, match="1-of-2 was written with another model"):
            predict_folder([], out, model=other, **settings)


class TestUrls:
    @pytest.fixture
    def bucket(self, images: Path) -> Iterator[str]:
        store = fsspec.filesystem("memory")
        store.put(str(images), "/bucket/images", recursive=True)
        yield "memory://bucket/images"
        store.rm("/bucket", recursive=True)

    def test_a_store_gives_what_its_files_give(
        self, bucket: str, pipeline: Pipeline, images: Path, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"model": pipeline, "batch_size": 2, "progress": False}
        predict_folder([images], tmp_path / "local", **settings)
        predict_folder([bucket], tmp_path / "remote", **settings)
        local, remote = lines_of(tmp_path / "local"), lines_of(tmp_path / "remote")
        assert [line["image_id"] for line in remote] == [f"memory:///bucket/images/{line['name']}" for line in local]
        for line in local + remote:
            del line["image_id"]
            assert "error" not in line or line.pop("error")
            line.pop("files", None)  # the JSON file holds the id
        assert local == remote

    def test_one_that_is_not_there_costs_its_own_entry(self, bucket: str, pipeline: Pipeline, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(f"x\t{bucket}/ward0/0.png\n{bucket}/none.png\n")
        out = tmp_path / "out"
        assert predict_folder([], out, manifest=tmp_path / "list.txt", model=pipeline, progress=False)["failed"] == 1
        good, bad = lines_of(out)
        assert good["name"] == "x"
        assert bad["name"] == "bucket/images/none.png"
        assert bad["kind"] == "ImageReadError"
        assert "none.png" in bad["error"]

    def test_a_protocol_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nosuch://bucket cannot be listed"):
            predict_folder(["nosuch://bucket"], tmp_path / "out")


class TestPages:
    def test_by_answer_and_reason(
        self, cheap: None, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "PAGE_IMAGES", 10)
        out = tmp_path / "out"
        predict_folder([], out, manifest=manifest(tmp_path / "list.csv", 100), model=pipeline, progress=False)
        index = (out / "index.html").read_text()
        assert "<article" not in index
        assert "More than one class is plausible" in index
        counts = dict(re.findall(r'html">([^<]+)</a></td><td class="number">(\d+)', index))
        assert counts.pop("unreadable") == "2"
        assert sorted(map(int, counts.values())) == [24, 24, 25, 25]
        shown: Counter[str] = Counter()
        for page in (out / "pages").glob("*.html"):
            text = page.read_text()
            names = re.findall('<article class="card">.*?<p class="name">([^<]+)</p>', text, re.DOTALL)
            assert 1 <= len(names) <= 10
            shown.update(names)
            for link in re.findall('(?:href|src)="([^"]+)"', text):
                assert link.startswith("data:") or (page.parent / link).is_file(), link
        assert shown == Counter({f"study-{number:06}": 1 for number in range(100)})
        for link in re.findall('href="([^"]+)"', index):
            assert link.startswith("data:") or (out / link).is_file(), link
        monkeypatch.setattr(results, "PAGE_IMAGES", 200)
        predict_folder([], out, manifest=tmp_path / "list.csv", model=pipeline, progress=False)
        assert not list((out / "pages").glob("*.html")), "pages of another time would stay"


class TestProcesses:
    def test_none_is_too_few(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="processes 1 or more"):
            predict_folder([images], tmp_path / "out", processes=0)
        with pytest.raises(ConfigError, match="batch_size must be 1 or more"):
            predict_folder([images], tmp_path / "out", processes=2, batch_size=0)
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_two_write_what_one_writes(self, pipeline: Pipeline, images: Path, tmp_path: Path) -> None:
        changed = Pipeline.from_pretrained("mini")
        changed.min_lung_area = 0.2  # what a process loads is this pipeline, not the bundled one
        for processes in (1, 2):
            out = tmp_path / str(processes)
            predict_folder([images], out, model=changed, processes=processes, batch_size=2, progress=False)
        contents = [
            {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
            for out in (tmp_path / "1", tmp_path / "2")
        ]
        different = {name for name in contents[0] | contents[1] if contents[0].get(name) != contents[1].get(name)}
        assert {path.name for path in different} <= {"summary.json"}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_two_processes_killed_at_moments(tmp_path: Path, form: str) -> None:
    """Nothing answered is lost or doubled, and nothing of a killed run goes on working."""
    draw(tmp_path / "images", 40)
    command = [sys.executable, "-m", "covidcxr", "predict", "images", "--batch-size", "2", "--num-workers", "0"]
    command += ["--format", form]
    out, answered = tmp_path / "out", set[str]()

    def known() -> set[str]:
        path = out / "predictions.jsonl"
        lines = path.read_bytes().splitlines(True) if path.is_file() else []
        return {json.loads(line)["name"] for line in lines if line.endswith(b"\n")}

    def check() -> None:
        assert answered <= known(), "an answer was lost"
        answered.update(known())

    def begun() -> bool:
        return len(known()) > len(answered)

    end = kill_at_moments(
        [*command, "--processes", "2", "--out", "out"], tmp_path, 2, seconds=0.5, begun=begun, check=check
    )
    assert end.returncode == 0, end.output
    assert end.kills == 2
    assert 0 < len(answered) < 40
    assert kill_at_moments([*command, "--out", "whole"], tmp_path, 0).returncode == 0
    if form == "jsonl":
        contents = [
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (out, tmp_path / "whole")
        ]
        assert contents[0].keys() == contents[1].keys()
        different = {name.name for name, content in contents[0].items() if content != contents[1][name]}
        assert different <= {"summary.json"}
        return
    mine, whole = ({row["name"]: row for row in rows_of(folder)} for folder in (out, tmp_path / "whole"))
    assert len(rows_of(out)) == 40
    assert mine == whole


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.timeout(1200)
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """A SIGKILL of the first process alone ends those of its pool."""
    draw(tmp_path / "images", 60)
    command = [sys.executable, "-m", "covidcxr", "predict", "images", "--processes", "2", "--batch-size", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--num-workers", "0", "--out", "out"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(lambda: (tmp_path / "out" / "films").is_dir() or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert len(members_of(process.pid)) >= 3
            process.kill()
            process.wait()
            wait_for(lambda: not members_of(process.pid), seconds=20)
            assert not members_of(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.timeout(1200)
def test_two_shards_side_by_side_killed_at_moments(tmp_path: Path) -> None:
    """Each goes on by itself, and the same command without a shard brings both together."""
    draw(tmp_path / "images", 40)
    command = [sys.executable, "-m", "covidcxr", "predict", "images", "--batch-size", "2", "--num-workers", "0"]
    ends: dict[int, Any] = {}

    def run(number: int) -> None:
        lines = tmp_path / "out" / "shards" / f"{number}-of-2" / "predictions.jsonl"
        counts = [0]

        def check() -> None:
            counts.append(lines.read_bytes().count(b"\n"))
            assert counts[-1] >= counts[-2], "an answer was lost"

        ends[number] = kill_at_moments(
            [*command, "--shard", f"{number}/2", "--out", "out"],
            tmp_path,
            2,
            seed=number,
            seconds=0.5,
            begun=lambda: lines.is_file() and lines.read_bytes().count(b"\n") > counts[-1],
            check=check,
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ends[number].returncode for number in (1, 2)] == [0, 0], [end.output for end in ends.values()]
    assert sum(end.kills for end in ends.values()) >= 3
    for name in ("out", "whole"):
        assert kill_at_moments([*command, "--out", name], tmp_path, 0).returncode == 0
    mine, whole = lines_of(tmp_path / "out"), lines_of(tmp_path / "whole")
    assert [line.pop("folder") for line in mine] == ["shards/1-of-2", "shards/2-of-2"] * 20
    assert mine == whole


def draw(folder: Path, count: int) -> None:
    for seed in range(count):
        write_image(folder / f"{seed:02}.png", draw_phantom(seed, size=(96, 80)).image)


def members_of(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    lines = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines()[1:]]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
