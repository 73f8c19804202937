"""From a reader's verdict to a model that learned from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import dicom_of, film_png, pixels_of, png_of, running, small_pipeline, upload

from covidcxr import Pipeline
from covidcxr.cli import main
from covidcxr.config import ModelConfig
from covidcxr.data import FeedbackDataModule
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.image import read_mask
from covidcxr.models import ClassificationModel
from covidcxr.serve import Store, export_feedback

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


def judge(client: httpx.Client, film: dict[str, Any], label: str | None, *, consent: bool = True) -> None:
    said = {"label": label, "comment": "secret words", "consent": consent}
    client.put(f"/api/films/{film['id']}/verdict", json=said).raise_for_status()


@pytest.fixture(scope="module")
def store(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images: four labelled, one that nobody can judge, one without consent."""
    folder = tmp_path_factory.mktemp("feedback") / "store"
    with running(folder, pipeline, keep_identifiers=True) as client:
        films = [upload(client, film_png(seed), f"secret-name-{seed}.png") for seed in range(4)]
        pixels = pixels_of(film_png(4))
        patient = {"PatientID": "PID-4711-X", "StudyInstanceUID": "1.2.3.4711"}
        films += [upload(client, dicom_of(pixels, **patient)), upload(client, dicom_of(pixels[:, ::-1], **patient))]
        for film, label in zip(films, ("normal", "normal", "pneumonia", "cannot say", "normal", "normal"), strict=True):
            judge(client, film, label)
        judge(client, films[1], "covid19", consent=False)  # withdrawn
        mask = pixels_of(client.get(f"/api/films/{films[0]['id']}/masks/lung_field.png").content)
        mask[:40] = 0
        client.put(f"/api/films/{films[0]['id']}/masks/lung_field", content=png_of(mask)).raise_for_status()
    return folder


@pytest.fixture(scope="module")
def export(store: Path) -> Path:
    out = store.parent / "export"
    assert main(["feedback", str(store), "--out", str(out)]) == 0
    return out


def test_the_export_holds_what_may_train_and_names_nobody(export: Path) -> None:
    index = json.loads((export / "feedback.json").read_text())
    assert index["classes"] == ["covid19", "pneumonia", "normal"]
    assert [film["label"] for film in index["films"]] == ["normal", "pneumonia", None, "normal", "normal"]
    assert [film["patient"] for film in index["films"]] == [None, None, None, "patient-1", "patient-1"]
    assert all(film["model"] == "mini" and len(film["model_sha256"]) == 64 for film in index["films"])
    for path in export.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"secret", b"PID-4711-X", b"1.2.3.4711"):
                assert secret not in content, path


def test_the_export_is_a_data_module(export: Path) -> None:
    data = FeedbackDataModule(export, drawn_masks=export / "drawn", region="lungs", image_size=(64, 64))
    assert data.classes == ("covid19", "pneumonia", "normal")
    assert sorted(record.label or "" for record in data.records) == ["", "normal", "normal", "normal", "pneumonia"]
    assert len({record.patient for record in data.records}) == 4
    corrected = [record for record in data.records if "masks" in str(record.mask_paths.get("lung_field"))]
    assert len(corrected) == 1
    assert not read_mask(corrected[0].mask_paths["lung_field"])[:40].any()
    assert all("lung_field" in record.mask_paths for record in data.records)
    bare = FeedbackDataModule(export)
    assert sum(bool(record.mask_paths) for record in bare.records) == 1, "drawn masks are no reader's"
    sample = FeedbackDataModule(export, fractions=(1.0, 0.0)).train_dataset[0]
    assert sample["image"].shape == (1, 256, 256)


def test_an_export_is_new_and_whole(store: Path, export: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["feedback", str(store), "--out", str(export)]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["feedback", str(store), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"films": 5, "labels": 4, "corrected_masks": 1}
    assert main(["feedback", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "no store" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    empty = Store(tmp_path / "empty")
    with pytest.raises(ConfigError, match="No reader agreed"):
        export_feedback(empty, tmp_path / "x")
    empty.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "empty"]


def test_what_is_no_export(store: Path, export: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a server's store"):
        FeedbackDataModule(store)
    with pytest.raises(DatasetError, match="feedback STORE --out"):
        FeedbackDataModule(tmp_path)
    index = json.loads((export / "feedback.json").read_text())
    for damage in ("{", "[]", json.dumps(index | {"films": [{}]}), json.dumps(index | {"classes": [1]})):
        (tmp_path / "feedback.json").write_text(damage)
        with pytest.raises(DatasetError, match="is damaged"):
            FeedbackDataModule(tmp_path)
    (tmp_path / "feedback.json").write_text(json.dumps(index | {"format_version": 2}))
    with pytest.raises(DatasetError, match="newer covidcxr"):
        FeedbackDataModule(tmp_path)


def fine_tuning(model: ModelConfig, export: Path) -> dict[str, Any]:
    """The settings of a short training that starts from the bundled classifier."""
    seen = model.preprocess
    data = {"image_size": list(seen.image_size), "fit": seen.fit, "region": seen.region, "augment": "none"}
    data |= {"lung_dilation": seen.lung_dilation, "fractions": [1.0, 0.0], "drawn_masks": str(export / "drawn")}
    task = {"model": model.to_dict(), "loss": "cross_entropy", "lr": 0.01, "init_from": "mini"}
    trainer = {"max_epochs": 30, "limit_val_batches": 0, "accelerator": "cpu", "logger": False}
    return {
        "seed_everything": 0,
        "model": {"class_path": "ClassificationTask", "init_args": task},
        "data": {"class_path": "FeedbackDataModule", "init_args": data},
        "trainer": trainer | {"enable_checkpointing": False, "default_root_dir": str(export.parent)},
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tuning_on_feedback_moves_the_answer_on_those_films(tmp_path: Path) -> None:
    """Readers contradict the model on phantoms; after a few steps from the bundled weights it agrees with them."""
    mini = Pipeline.from_pretrained("mini")
    assert mini.classifier is not None
    contents = [film_png(seed, "normal", size=(224, 224)) for seed in range(6)]
    with running(tmp_path / "store", mini) as client:
        before = [upload(client, content) for content in contents]
        chosen = [min(film["probabilities"], key=film["probabilities"].__getitem__) for film in before]
        for film, label in zip(before, chosen, strict=True):
            judge(client, film, label)
    out = tmp_path / "feedback"
    assert main(["feedback", str(tmp_path / "store"), "--out", str(out)]) == 0
    (tmp_path / "fine-tuning.yaml").write_text(json.dumps(fine_tuning(mini.classifier.members[0].config, out)))
    words = ["--config", str(tmp_path / "fine-tuning.yaml"), "--data", "feedback", "--data.root", str(out)]
    assert main(["fit", *words, "--output", str(tmp_path / "tuned")]) == 0
    tuned = Pipeline(
        lung_segmenter=mini.lung_segmenter, classifier=ClassificationModel.from_pretrained(tmp_path / "tuned")
    )
    with running(tmp_path / "store", tuned) as client:  # the same store, served by the model that learned from it
        after = [client.get(f"/api/films/{film['id']}").json() for film in before]
    gains = [
        new["probabilities"][label] - old["probabilities"][label]
        for old, new, label in zip(before, after, chosen, strict=True)
    ]
    assert np.mean(gains) > 0.2, gains
    assert min(gains) > 0, gains
    assert all(new["verdict"] == {**new["verdict"], "label": label} for new, label in zip(after, chosen, strict=True))
