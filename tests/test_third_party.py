"""Somebody else's package (`third_party/`) plugs in by entry points and trains with a plain Lightning `Trainer`.

The package is put on the path with the metadata that an installer would write from its `pyproject.toml`; covidcxr
finds it as it finds any installed package, through `importlib.metadata`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import draw_image, write_image
from tiny_models import tiny_pipeline

from covidcxr import Pipeline
from covidcxr.errors import PretrainedError, UnknownNameError
from covidcxr.models import ClassificationModel
from covidcxr.pipeline.parts import fingerprint

HERE = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / f"cxr_ward-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.3\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (metadata / "entry_points.txt").write_text(
        "\n".join(
            line
            for group, points in project["entry-points"].items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
        )
    )
    paths = [str(site), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patients with two images each; opaque images have a bright lower half."""
    root = tmp_path_factory.mktemp("films")
    for patient in range(24):
        finding = ("clear", "opaque")[patient % 2]
        for number in range(2):
            image = draw_image(10 * patient + number)
            if finding == "opaque":
                image[len(image) // 2 :] = np.maximum(image[len(image) // 2 :], 200)
            write_image(root / finding / f"{patient:02d}-{number}.png", image)
    return root


def run(*words: str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=folder, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_are_known_without_an_import(installed: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
from covidcxr.registry import CLASSIFICATION_LOSSES, CLASSIFICATION_NETWORKS, DATASETS, SEGMENTATION_LOSSES
assert "ward" in DATASETS and "ward_net" in CLASSIFICATION_NETWORKS
assert "brier" in CLASSIFICATION_LOSSES and "brier" not in SEGMENTATION_LOSSES and "squared" in SEGMENTATION_LOSSES
assert not any(name.startswith("cxr_ward") for name in sys.modules)
assert DATASETS.get("ward").__module__ == "cxr_ward.data"
assert "cxr_ward.networks" not in sys.modules
"""
    run("-c", code, environment=installed, folder=tmp_path)


def test_weights_load_by_name_and_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["covidcxr.pretrained"]
    (tmp_path / "cxr_ward-1.2.dist-info").mkdir()
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (tmp_path / "cxr_ward-1.2.dist-info" / "entry_points.txt").write_text(f"[covidcxr.pretrained]\n{lines}\n")
    folder = tmp_path / "cxr_ward" / "weights"
    (pipeline := tiny_pipeline()).save_pretrained(folder)
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint(Pipeline.from_pretrained("ward")) == fingerprint(pipeline)
    assert ClassificationModel.from_pretrained("ward").config == pipeline.models()["classifier"].config
    weights = folder / "classifier" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(PretrainedError, match=r"truncated or was altered"):
        Pipeline.from_pretrained("ward")


TRAIN = """
import json, sys
import lightning, torch
from covidcxr import ClassificationModel, ClassificationTask, ModelConfig, PreprocessConfig
from covidcxr.losses import build_segmentation_loss
from covidcxr.registry import DATASETS

root, out = sys.argv[1:]
data = DATASETS.get("ward")(root, ward="north", image_size=(32, 32), batch_size=8, augment=None)
config = ModelConfig(
    task="classification",
    network="ward_net",
    classes=data.classes,
    network_args={"width": 6},
    preprocess=PreprocessConfig(image_size=(32, 32)),
)
lightning.seed_everything(0, verbose=False)
task = ClassificationTask(config, loss="brier+cross_entropy", loss_args={"brier": {"scale": 2.0}}, lr=0.02)
first = [parameter.detach().clone() for parameter in task.model.parameters()]
trainer = lightning.Trainer(
    max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, default_root_dir=out,
)
trainer.fit(task, datamodule=data)
(scores,) = trainer.test(task, datamodule=data, verbose=False)
task.save_pretrained(out)
image = next(iter(data.test_dataloader()))["image"]
model = ClassificationModel.from_pretrained(out)
print(json.dumps({
    "changed": all(bool((a != b).any()) for a, b in zip(first, task.model.parameters())),
    "losses": [type(loss).__module__ for loss in task.loss.losses],
    "scale": task.loss.losses[0].scale,
    "same": torch.equal(model.predict(image), task.model.predict(image)),
    "network": type(model.network).__module__,
    "rows": len(task.rows),
    "sources": sorted({row["source"] for row in task.rows}),
    "mask loss": float(build_segmentation_loss("squared")(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))),
    **scores,
}))
"""


@pytest.fixture(scope="module")
def trained(
    installed: dict[str, str], images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder of the trained model, and what the training process says of it."""
    folder = tmp_path_factory.mktemp("trained")
    lines = run("-c", TRAIN, str(images), str(folder / "model"), environment=installed, folder=folder)
    return folder / "model", json.loads(lines.splitlines()[-1])


def test_trains_with_a_plain_trainer(trained: tuple[Path, dict[str, Any]]) -> None:
    _, result = trained
    assert result["changed"]
    assert result["losses"][0] == "cxr_ward.losses"
    assert result["scale"] == 2.0
    assert result["same"]
    assert result["network"] == "cxr_ward.networks"
    assert result["rows"] == 8  # 4 of the 24 patients
    assert result["sources"] == ["north"]
    assert result["mask loss"] == pytest.approx(0.25)
    assert result["test/accuracy"] == 1.0  # the images were drawn to be told apart


def test_its_saved_model_names_no_code_and_needs_the_package(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    saved = (folder / "config.json").read_text(encoding="utf-8")
    assert json.loads(saved)["network"] == "ward_net"
    assert "cxr_ward" not in saved
    with pytest.raises(UnknownNameError, match="There is no classification network 'ward_net'"):
        ClassificationModel.from_pretrained(folder)  # nobody has installed it here


@pytest.mark.slow
def test_trains_from_the_command_line(installed: dict[str, str], images: Path, tmp_path: Path) -> None:
    words = f"""fit --data ward --data.root {images} --data.ward south --data.image_size [32,32] --data.batch_size 8
        --model classification --model.model.task classification --model.model.network ward_net
        --model.model.classes [clear,opaque] --model.model.preprocess.image_size [32,32] --model.loss brier
        --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.logger false
        --trainer.enable_progress_bar false --output {tmp_path / "model"}"""
    run("-m", "covidcxr", *words.split(), environment=installed, folder=tmp_path)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (saved["network"], saved["classes"]) == ("ward_net", ["clear", "opaque"])
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 1000
