"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covidcxr.cli import main
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.phantom import draw_phantom, write_dataset
from covidcxr.pipeline.folder import find_images
from covidcxr.pipeline.pipeline import Pipeline


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((draw_phantom(seed, size=(200, 180)).image * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    write_image(folder / "a.png", 1)
    write_image(folder / "a.jpg", 2)
    write_image(folder / "ward 3" / "a.png", 3)
    write_image(folder / "<b>bold & 'odd'.png", 4)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "notes.txt").write_text("no image either, and left out")
    return folder


def test_predict_writes_lines_masks_overlays_and_a_page(images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    code = main(["predict", str(images), str(tmp_path / "missing.png"), "--out", str(out), "--json"])
    assert code == 1, "two images could not be read"
    summary = json.loads(capsys.readouterr().out)
    assert summary["films"] == 6
    assert summary["failed"] == 2
    assert summary["left_out"] == {".txt": 1}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    bad = {line["name"]: line["error"] for line in lines if "error" in line}
    assert set(bad) == {"broken.jpg", "missing.png"}
    assert "broken.jpg" in bad["broken.jpg"]
    for line in lines:
        if "error" not in line:
            assert json.loads((out / "films" / f"{line['name']}.json").read_text())["label"] == line["label"]
            mask = np.asarray(Image.open(out / "films" / f"{line['name']}.lung_field.png"))
            assert mask.shape == (line["height"], line["width"])
            assert int((mask > 0).sum()) == line["mask_areas"]["lung_field"]
    page = (out / "index.html").read_text()
    assert "<b>bold" not in page
    assert "research only" in page
    for picture in Pictures.of(page):
        assert (out / picture).is_file()


class Pictures(HTMLParser):
    """Collects the pictures of a page and refuses anything from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    @classmethod
    def of(cls, page: str) -> list[str]:
        from urllib.parse import unquote

        parser = cls()
        parser.feed(page)
        return [unquote(path) for path in parser.paths]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe")
        for name, value in attrs:
            assert not (value or "").startswith(("http:", "https:", "//"))
            if (tag, name) == ("img", "src"):
                self.paths.append(str(value))


def test_the_same_image_gives_the_same_numbers_everywhere(tmp_path: Path) -> None:
    path = write_image(tmp_path / "film.png")
    pipeline = Pipeline.from_pretrained("mini")
    here = pipeline(path)
    saved = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "copy"))(path)
    assert main(["predict", str(path), "--out", str(tmp_path / "out")]) == 0
    cli = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    for name, value in here.probabilities.items():
        assert saved.probabilities[name] == pytest.approx(value, abs=1e-6)
        assert cli["probabilities"][name] == pytest.approx(value, abs=1e-6)
    assert here.label == saved.label == cli["label"]
    assert list(here.reasons) == cli["reasons"]
    mask = np.asarray(Image.open(tmp_path / "out" / "films" / "film.png.lung_field.png")) > 0
    assert np.array_equal(mask, here.masks["lung_field"])
    assert np.array_equal(mask, saved.masks["lung_field"])


def test_names_of_answers_are_unique(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_image(tmp_path / folder / "film.png")
    images, _ = find_images([tmp_path / "x", tmp_path / "y", tmp_path / "x" / "film.png"])
    assert [name for _, name in images] == ["film.png", "film-2.png", "film-3.png"]


def test_answers_of_an_earlier_run_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_image(tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["predict", ".", "--out", "answers", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["films"] == 1


def test_odd_names_and_links_cost_at_most_their_own_entry(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "films"
    write_image(folder / "good.png")
    write_image(tmp_path / "elsewhere" / "linked.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "elsewhere-again").symlink_to(folder)  # leads back
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    shutil.copy(folder / "good.png", os.fsencode(folder) + b"/\xff.png")
    shutil.copy(folder / "good.png", folder / f"{'n' * 245}.png")
    out = tmp_path / "out"
    assert main(["predict", str(folder), "--out", str(out), "--json"]) == 1
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    bad = {line["name"] for line in lines if "error" in line}
    assert bad == {"broken.jpg", f"{'n' * 245}.png"}
    assert {line["name"] for line in lines} - bad == {"good.png", "link/linked.png", "\\udcff.png"}
    assert (out / "index.html").is_file()


def test_names_never_leave_the_output_folder(tmp_path: Path, capsys: Any) -> None:
    write_image(tmp_path / "other" / "film.png")
    (tmp_path / "films").mkdir()
    path = str(tmp_path / "films" / ".." / "other" / "film.png")
    assert main(["predict", path, "--root", str(tmp_path / "films"), "--out", str(tmp_path / "out")]) == 2
    assert "does not lie below the root" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: Any) -> None:
    image = write_image(tmp_path / "film.png")
    assert main(["predict", str(image), "--out", str(image)]) == 2
    assert capsys.readouterr().err.startswith("covidcxr: ")


def test_no_images_unknown_model_and_unknown_device_are_one_line(images: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "empty"), *out]) == 2
    assert main(["predict", str(images), "--model", "minni", *out]) == 2
    assert main(["predict", str(images), "--device", "tpu9", *out]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("covidcxr: ") for line in lines)
    assert "mini" in lines[1]
    assert "tpu9" in lines[2]


def test_demo_draws_phantoms_and_prints_the_page(tmp_path: Path, capsys: Any) -> None:
    assert main(["demo", "--out", str(tmp_path), "--no-open"]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "index.html") in printed
    assert "research only" in printed
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 12


def test_demo_takes_your_images_and_leaves_what_it_drew(
    images: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("covidcxr-demo").mkdir()
    assert main(["demo", str(images / "a.png"), "--no-open", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["films"] == 1
    assert Path("runs", "demo-1", "index.html").is_file()
    assert not list(Path("covidcxr-demo").iterdir())


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["demo", "--help"], ["doctor", "--help"]])
def test_help_has_an_example(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert "example" in capsys.readouterr().out


TINY = """
model:
  class_path: {task}
  init_args:
    model:
      task: {kind}
      network: {network}
      network_args: {arguments}
      classes: {classes}
      mode: {mode}
      preprocess: {{image_size: [64, 64]}}
    lr: 0.001
    loss: {loss}
    loss_args: {loss_args}
data:
  class_path: CSVDataModule
  init_args:
    image_size: [64, 64]
    mask_columns: {{lung_field: lung_field, lung: lung}}
    mask_classes: {masks}
    batch_size: 8
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, logger: false}}
"""
ENCODER = "{encoder: tu-mobilenetv3_small_050, decoder_pyramid_channels: 32, decoder_segmentation_channels: 32}"


def write_config(path: Path, task: str) -> Path:
    words: dict[str, Any] = {"kind": task, "masks": "[]", "mode": "multiclass"}
    if task == "segmentation":
        words |= {"task": "SegmentationTask", "network": "smp:fpn", "arguments": ENCODER, "mode": "multilabel"}
        words |= {"classes": "[lung_field, lung]", "masks": "[lung_field, lung]"}
        words |= {"loss": "dice+bce", "loss_args": "{weights: [1, 0.5]}"}
    else:
        words |= {"task": "ClassificationTask", "network": "timm:mobilenetv3_small_050", "arguments": "{}"}
        words |= {"classes": "[covid19, normal, pneumonia]", "loss": "focal", "loss_args": "{gamma: 1.0}"}
    path.write_text(TINY.format(**words))
    return path


def call(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covidcxr", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ})


@pytest.mark.parametrize("task", ["segmentation", pytest.param("classification", marks=pytest.mark.slow)])
def test_fit_saves_a_model_and_test_scores_it_with_intervals(tmp_path: Path, task: str) -> None:
    data = write_dataset(tmp_path / "data", 24, seed=5, size=(80, 80)).parent
    config = write_config(tmp_path / "tiny.yaml", task)
    fit = call("fit", "--config", config, "--data.root", data, "--output", "model", cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr[-3000:]
    kind = SegmentationModel if task == "segmentation" else ClassificationModel
    assert kind.from_pretrained(tmp_path / "model").config.task == task
    words = ["--config", config, "--data.root", data, "--model.init_from", "model", "--output", "scores"]
    test = call("test", *words, cwd=tmp_path)
    assert test.returncode == 0, test.stderr[-3000:]
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    name = "dice_lung" if task == "segmentation" else "accuracy"
    assert set(scores["all"][name]) == {"value", "low", "high", "count", "patients"}
    assert scores["all"][name]["low"] <= scores["all"][name]["value"] <= scores["all"][name]["high"]
    assert name in test.stdout
    assert "95 %" in test.stdout
    rows = (tmp_path / "scores" / "predictions.csv").read_text().splitlines()
    assert rows[0].startswith("image_id,patient_id,source")
    assert len(rows) == 1 + scores["all"][name]["count"]


def test_a_config_says_which_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_dataset(tmp_path / "data", 24, seed=5, size=(80, 80)).parent
    keeper = '[{"class_path": "ModelCheckpoint", "init_args": {"filename": "mine-{epoch}"}}]'
    words = ["--config", str(write_config(tmp_path / "tiny.yaml", "classification")), "--data.root", str(data)]
    words += ["--output", "model", "--trainer.callbacks", keeper, "--trainer.enable_model_summary", "false"]
    assert main(["fit", *words]) == 0
    assert "(weights of mine-epoch=0.ckpt)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["mine-epoch=0.ckpt"]


@pytest.mark.slow
def test_a_training_resumes_and_a_checkpoint_is_scored(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24, seed=5, size=(80, 80)).parent
    base = ["--config", write_config(tmp_path / "tiny.yaml", "classification"), "--data.root", data]
    first = call("fit", *base, "--trainer.default_root_dir", tmp_path / "run", "--output", "model", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    last = next((tmp_path / "run").rglob("last.ckpt"))
    again = call("fit", *base, "--ckpt_path", last, "--trainer.max_epochs", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Restored all states" in again.stderr
    scored = call("test", *base, "--ckpt_path", last, "--output", "scores", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr[-3000:]
    for words, message in (
        ([], "no weights to score"),
        (["--model.init_from", "model", "--model.model.preprocess.mean", "[0.1]"], "preprocess is"),
        (
            ["--model.init_from", "model", "--data.where", '{"label": "covid19"}', "--data.fractions", "[1.0,0.0]"],
            "clas",
        ),
    ):
        refused = call("test", *base, *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_wrong_settings_fail_before_training_with_the_nearest_name(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 6, seed=5, size=(64, 64)).parent
    config = write_config(tmp_path / "tiny.yaml", "classification")
    base = ["fit", "--config", config, "--data.root", data]
    typo = call(*base, "--model.optimiser", "sgd", cwd=tmp_path)
    assert typo.returncode == 2
    assert "optimiser" in typo.stderr
    network = call(*base, "--model.model.network", "timm:resnet5o", cwd=tmp_path)
    assert network.returncode == 2
    assert "Did you mean 'resnet50'?" in network.stderr
    assert "Traceback" not in network.stderr
    recipe = call("fit", "--config", "mini-lung", cwd=tmp_path)
    assert recipe.returncode == 2
    assert "mini-lungs" in recipe.stderr
    dataset = call("fit", "--data", "folders", cwd=tmp_path)
    assert dataset.returncode == 2
    assert "Did you mean 'folder'?" in dataset.stderr
    missing = call("fit", "--config", config, "--data.root", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr
