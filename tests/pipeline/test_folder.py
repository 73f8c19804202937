"""`covidcxr predict`: a folder of one run, which nothing tears apart."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kill import kill_at_moments

from covidcxr.cli import main
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io import lock_folder, read_mask, write_image
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline import Pipeline, Prediction
from covidcxr.pipeline.folder import find_images, predict_folder

HIDDEN = {".covidcxr.lock", ".covidcxr.holder.json"}
OLD_PATHS = ("summary.json", "covidcxr-run.json")
"""Files that tell where the folder lies, or when its images were written."""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("mini")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(7):
        draw(folder / f"{seed}.png", seed)
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    return folder


def draw(path: Path, seed: int = 0) -> Path:
    write_image(path, draw_phantom(seed, size=(96, 80)).image)
    return path


@pytest.fixture(scope="module")
def predict(pipeline: Pipeline, images: Path) -> Callable[..., dict[str, Any]]:
    """Predict for the images, three a batch."""

    def run(out: Path, paths: Any = (images,), **settings: Any) -> dict[str, Any]:
        return predict_folder(paths, out, model=pipeline, batch_size=3, num_workers=0, progress=False, **settings)

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, predict: Callable[..., Any]) -> dict[str, bytes]:
    """The results that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    predict(out)
    return files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files whose content does not depend on where they lie."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name not in HIDDEN | {*OLD_PATHS}}


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


class Stop(BaseException):
    """The process ends here."""


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run while the files of an image are being written."""
    calls = iter(range(count))

    def save(self: Prediction, folder: Any, name: str | None = None, **settings: Any) -> Path:
        if next(calls, None) is None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f".{'0' * 32}.tmp").write_bytes(b"half a picture")
            raise Stop
        return original(self, folder, name, **settings)

    original = Prediction.save
    monkeypatch.setattr(Prediction, "save", save)


class TestOneRun:
    def test_another_run_is_refused_and_nothing_changes(self, predict: Any, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        predict(out)
        before = files_of(out)
        with pytest.raises(ConfigError, match="another run: what differs is images"):
            predict(out, [images / "1.png"])
        small = Pipeline.from_pretrained("mini")
        small.min_lung_area = 0.2
        with pytest.raises(ConfigError, match="another run: what differs is model"):
            predict_folder([images], out, model=small, progress=False)
        assert files_of(out) == before

    def test_overwrite_starts_over_and_leaves_what_is_not_ours(
        self, predict: Any, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        predict(out)
        (out / "films" / "notes.txt").write_text("mine")
        assert predict(out, [images / "1.png"], overwrite=True)["films"] == 1
        masks = {"lung_field", "lung", "infection"}
        endings = {"json", "overlay.jpg", *(f"{name}.png" for name in masks)}
        assert {path.name for path in (out / "films").iterdir()} == {f"1.png.{end}" for end in endings} | {"notes.txt"}
        assert [line["name"] for line in lines_of(out)] == ["1.png"]

    def test_overlays_and_masks_can_be_left_out(self, predict: Any, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        predict(out, [images / "1.png"], overlays=None, masks=False)
        assert {path.name for path in (out / "films").iterdir()} == {"1.png.json"}
        assert "<img" not in (out / "index.html").read_text()
        with pytest.raises(ConfigError, match="what differs is overlays and masks"):
            predict(out, [images / "1.png"])

    def test_images_that_changed_are_another_run(self, predict: Any, tmp_path: Path) -> None:
        image = draw(tmp_path / "image.png")
        predict(tmp_path / "out", [image])
        draw(image, seed=1)
        with pytest.raises(ConfigError, match="what differs is images"):
            predict(tmp_path / "out", [image])

    def test_files_of_unknown_origin_are_not_replaced(self, predict: Any, tmp_path: Path) -> None:
        (tmp_path / "index.html").write_text("my page")
        with pytest.raises(ConfigError, match=r"holds index\.html, and no record"):
            predict(tmp_path, overwrite=True)
        assert (tmp_path / "index.html").read_text() == "my page"

    def test_two_at_once(self, predict: Any, tmp_path: Path) -> None:
        with lock_folder(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            predict(tmp_path)
        assert predict(tmp_path)["films"] == 7

    def test_the_command_line(self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["predict", str(images / "1.png"), "--out", str(tmp_path / "out"), "--json"]
        assert main(words) == 0
        first = capsys.readouterr().out
        assert main(words) == 0
        output = capsys.readouterr()
        assert output.out == first
        assert "1 of 1 images were answered before" in output.err
        assert main([*words[:2], str(images / "2.png"), *words[2:]]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert main([*words[:2], str(images / "2.png"), *words[2:], "--overwrite"]) == 0

    @pytest.mark.slow
    def test_explain_refuses_the_folder_of_predict(self, predict: Any, images: Path, tmp_path: Path) -> None:
        predict(tmp_path / "out")
        assert main(["explain", str(images / "1.png"), "--out", str(tmp_path / "out")]) == 2
        for _ in range(2):
            assert main(["explain", str(images / "1.png"), "--out", str(tmp_path / "heat")]) == 0
        assert main(["explain", str(images / "2.png"), "--out", str(tmp_path / "heat")]) == 2
        assert main(["explain", str(images / "2.png"), "--out", str(tmp_path / "heat"), "--overwrite"]) == 0
        assert not list((tmp_path / "heat" / "films").glob("1.png*"))


class TestInterrupted:
    @pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
    def test_it_goes_on_where_it_stopped(
        self, predict: Any, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            stop_after(count, patch)
            with pytest.raises(Stop):
                predict(out)
        # A batch is three images, and the fourth image cannot be read.
        kept = lines_of(out) if (out / "predictions.jsonl").is_file() else []
        assert len(kept) == {0: 0, 1: 0, 2: 0, 4: 3, 5: 6}[count]
        assert not (out / "summary.json").exists()
        written = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name[:-5] in str(kept)}
        predict(out)
        assert files_of(out) == whole
        assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "an image was asked again"

    @pytest.mark.parametrize("cut", [1, 40, -1])
    def test_a_half_line_is_healed(self, predict: Any, tmp_path: Path, whole: Any, cut: int) -> None:
        out = tmp_path / "out"
        predict(out)
        lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
        (out / "predictions.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:cut])
        predict(out)
        assert files_of(out) == whole

    @pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"name": []}\n', b"{}\n", b"\xff\n"])
    def test_damaged_lines_are_answered_again(self, predict: Any, tmp_path: Path, whole: Any, damage: bytes) -> None:
        out = tmp_path / "out"
        predict(out)
        lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
        (out / "predictions.jsonl").write_bytes(lines[0] + damage + b"".join(lines[2:]))
        predict(out)
        assert {**files_of(out), "index.html": b""}.keys() == whole.keys()
        assert [line["name"] for line in lines_of(out)] == [f"{seed}.png" for seed in range(7)]

    def test_files_that_are_gone_are_written_again(self, predict: Any, tmp_path: Path, whole: Any) -> None:
        out = tmp_path / "out"
        predict(out)
        shutil.rmtree(out / "films")
        predict(out)
        assert files_of(out).keys() == whole.keys()

    @pytest.mark.parametrize("ending", ["json", "lung.png", "overlay.jpg"])
    def test_a_file_that_a_power_failure_cut_is_written_again(
        self, predict: Any, tmp_path: Path, whole: Any, ending: str
    ) -> None:
        out = tmp_path / "out"
        predict(out)
        (out / "films" / f"2.png.{ending}").write_bytes(b"")
        predict(out)
        assert files_of(out) == whole

    def test_a_run_of_an_earlier_release_goes_on(self, predict: Any, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        predict(out, overlays="png")
        record = json.loads((out / "covidcxr-run.json").read_text())
        del record["settings"]["overlays"]  # they wrote PNG, and said neither that nor sizes
        (out / "covidcxr-run.json").write_text(json.dumps(record))
        lines = [{key: value for key, value in line.items() if key != "files"} for line in lines_of(out)]
        (out / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines[:5]))
        predict(out)
        page = (out / "index.html").read_text()
        assert 'src="films/0.png.overlay.png"' in page
        assert 'src="films/6.png.overlay.jpg"' in page

    def test_images_that_failed_are_tried_again(
        self, predict: Any, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from covidcxr.pipeline import cases

        def read(image: Any, **settings: Any) -> Any:
            if Path(image).name == "5.png":
                raise ImageReadError("The disk of the images is away.")
            return original(image, **settings)

        out, original = tmp_path / "out", cases.read_pixels
        with monkeypatch.context() as patch:
            patch.setattr(cases, "read_pixels", read)
            assert predict(out)["failed"] == 2
        assert predict(out)["failed"] == 1
        assert [line["name"] for line in lines_of(out)] == [f"{seed}.png" for seed in range(7)]
        assert files_of(out).keys() == whole.keys()

    def test_a_full_disk_is_one_error_and_costs_nothing(
        self, predict: Any, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save(self: Prediction, folder: Any, name: str | None = None, **settings: Any) -> Path:
            if name == "4.png":
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(self, folder, name, **settings)

        out, original = tmp_path / "out", Prediction.save
        with monkeypatch.context() as patch:
            patch.setattr(Prediction, "save", save)
            with pytest.raises(ConfigError, match=r"No space left on device\. Mend that and run the same"):
                predict(out)
        assert len(lines_of(out)) == 3
        predict(out)
        assert files_of(out) == whole


class TestOddAnswers:
    @pytest.fixture
    def change(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Prediction], Prediction]], None]:
        """Change the prediction of the second image of each batch."""

        def apply(changed: Callable[[Prediction], Prediction]) -> None:
            def predict_batches(self: Pipeline, images: Any, **settings: Any) -> Iterator[Any]:
                for batch in original(self, images, **settings):
                    yield [batch[0], changed(batch[1]), *batch[2:]] if len(batch) > 1 else batch

            original = Pipeline.predict_batches
            monkeypatch.setattr(Pipeline, "predict_batches", predict_batches)

        return apply

    def test_a_number_that_is_none_is_null_and_costs_no_other_image(
        self, change: Any, predict: Any, images: Path, tmp_path: Path
    ) -> None:
        nan, inf = float("nan"), float("inf")
        change(lambda p: Prediction(p.image_id, None, {"covid19": nan, "normal": inf}, (), p.masks, p.image))
        summary = predict(tmp_path / "out", [images / "0.png", images / "1.png", images / "2.png"])
        assert (summary["films"], summary["failed"]) == (3, 0)
        line = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[1]
        for text in (line, (tmp_path / "out" / "films" / "1.png.json").read_text()):
            assert json.loads(text, parse_constant=pytest.fail)["probabilities"] == {"covid19": None, "normal": None}
        assert "nan" not in (tmp_path / "out" / "index.html").read_text().lower()

    @pytest.mark.parametrize("name", ["/../../../films/precious", "../../precious", "a/../../../b", "\0"])
    def test_a_mask_class_cannot_leave_the_folder(
        self, change: Any, predict: Any, images: Path, tmp_path: Path, name: str
    ) -> None:
        change(lambda p: Prediction(p.image_id, None, {}, (), {name: p.masks["lung"]}, p.image))
        out = tmp_path / "deep" / "below" / "out"
        summary = predict(out, [images / "0.png", images / "1.png"])
        assert (summary["films"], summary["failed"]) == (2, 1)
        assert "cannot name a file" in summary["failures"][0]["error"]
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(out.rglob("*")) - {out / "films"}
        assert not list((out / "films").glob("1.png*"))


class TestNames:
    def test_odd_names(self, predict: Any, tmp_path: Path) -> None:
        names = ["ä ö.png", "名前.png", "a b  c.png", "..x..png", "#?%20&.png", "line\nbreak.png", "-v.png", "'\".png"]
        paths = [draw(tmp_path / "images" / name) for name in [*names, "ward 3/ä ö.png"]]
        hidden = draw(tmp_path / "images" / ".hidden.png")
        summary = predict(tmp_path / "out", [tmp_path / "images", hidden])
        assert (summary["films"], summary["failed"]) == (len(paths), 0)
        assert summary["left_out"] == {".png": 2}
        written = {line["name"] for line in lines_of(tmp_path / "out")}
        assert written == {*names, "ward 3/ä ö.png", ".hidden.png"} - {"..x..png"}
        for name in written:
            assert read_mask(tmp_path / "out" / "films" / f"{name}.lung.png").shape == (96, 80)

    def test_equal_names_of_different_folders(self, predict: Any, tmp_path: Path) -> None:
        paths = [draw(tmp_path / folder / name) for folder in "xyz" for name in ("film.png", "film.jpg")]
        summary = predict(tmp_path / "out", paths)
        assert summary["failed"] == 0
        names = [line["name"] for line in lines_of(tmp_path / "out")]
        assert names == ["film.png", "film.jpg", "film-2.png", "film-2.jpg", "film-3.png", "film-3.jpg"]
        assert predict(tmp_path / "out-2", [tmp_path], root=tmp_path)["films"] == 6, "masks and overlays, too"

    def test_names_differ_on_a_disk_without_upper_case(self, tmp_path: Path) -> None:
        given = ["a/Film.png", "b/film.png", "c/FILM-2.png", "d/A\u0308.png", "e/\u00c4.png", "f/film.png"]
        images, _ = find_images([tmp_path / name for name in given])
        assert [name for _, name in images] == [
            "Film.png",
            "film-2.png",
            "FILM-2-2.png",
            "A\u0308.png",
            "\u00c4-2.png",
            "film-3.png",
        ]

    def test_no_image(self, predict: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match="No images found"):
            predict(tmp_path / "out", [tmp_path / "empty"])
        assert not (tmp_path / "out").exists()

    def test_results_inside_the_images_folder_are_no_images(self, predict: Any, tmp_path: Path) -> None:
        draw(tmp_path / "image.png")
        first = predict(tmp_path / "out", [tmp_path])
        assert predict(tmp_path / "out", [tmp_path]) == first
        assert first["left_out"] == {}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.timeout(1200)
def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """Nothing answered is lost, nothing half-written is taken for whole, and the result is that of a whole run."""
    folder = tmp_path / "images"
    for seed in range(70):
        draw(folder / ("ward" if seed % 3 else "") / f"{seed:02d}.png", seed)
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    command = [sys.executable, "-m", "covidcxr", "predict", "images", "--batch-size", "2", "--num-workers", "0"]
    assert kill_at_moments([*command, "--out", "whole"], tmp_path, 0).returncode == 1
    whole, out = files_of(tmp_path / "whole"), tmp_path / "out"
    answered: dict[str, Any] = {}

    def begun() -> bool:
        return (out / ".covidcxr.holder.json").is_file() and len(read_whole_lines()) > len(answered)

    def read_whole_lines() -> list[bytes]:
        path = out / "predictions.jsonl"
        return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.is_file() else []

    def check() -> None:
        lines = {json.loads(line)["name"]: json.loads(line) for line in read_whole_lines()}
        good = {name for name, line in answered.items() if "error" not in line}
        assert good <= lines.keys(), "an answer was lost"
        for name in lines:
            assert "error" in lines[name] or (out / "films" / f"{name}.json").is_file()
        for path in (out / "films").rglob("*"):
            if path.is_file() and not path.name.endswith(".tmp"):
                assert path.read_bytes() == whole[path.relative_to(out).as_posix()], "half a file is taken for whole"
        assert not (out / "summary.json").exists()
        answered.update(lines)

    end = kill_at_moments([*command, "--out", "out"], tmp_path, 10, seed=1, seconds=0.25, begun=begun, check=check)
    assert end.returncode == 1, end.output
    assert end.kills == 10
    assert 20 <= len(answered) < 70
    assert files_of(out) == whole
