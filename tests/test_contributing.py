"""Each common change is made once, from outside, and the files that it takes are those that docs/architecture.md says.

Every change is a package as an installer would leave it: its modules on the path, and metadata with its entry points.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib import invalidate_caches
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import draw_image, write_folder_fake, write_image

from covidcxr import ClassificationModel, ModelConfig, Pipeline, PreprocessConfig, SegmentationModel, registry
from covidcxr.cli.main import main
from covidcxr.data import FolderDataModule
from covidcxr.errors import ConfigError
from covidcxr.evaluation import score_rows
from covidcxr.losses import build_segmentation_loss
from covidcxr.registry import DATASETS

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
SMALL = PreprocessConfig(image_size=(32, 32))
Install = Callable[..., None]


def files_of(change: str) -> int:
    """How many files a change takes in a package of one's own, as the table of docs/architecture.md says."""
    row = re.search(rf"^\| {re.escape(change)} \|[^|]*\| (\d)", ARCHITECTURE.read_text(encoding="utf-8"), re.M)
    assert row is not None, f"docs/architecture.md has no row for {change}"
    return int(row[1])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package `clinic` of some modules, found by its entry points (group -> name -> value)."""
    for table in (getattr(registry, name) for name in registry.__all__ if name.isupper()):
        table.load()  # or a module that is imported in the test would register in the copy alone
        monkeypatch.setattr(table, "_entries", dict(table._entries))

    def written(change: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]) -> None:
        site = tmp_path / "site"
        (site / "clinic-1.0.dist-info").mkdir(parents=True)
        (site / "clinic-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.3\nName: clinic\nVersion: 1.0\n")
        lines = [
            line
            for group, entries in points.items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
        ]
        (site / "clinic-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        assert len(modules) == files_of(change)
        monkeypatch.syspath_prepend(site)
        invalidate_caches()

    return written


def test_a_data_set(install: Install, tmp_path: Path) -> None:
    module = """
from covidcxr import CXRDataModule, Record

class ClinicDataModule(CXRDataModule):
    classes = ("clear", "opaque")

    def read_records(self):
        for path in sorted(self.root.glob("*/*.png")):
            yield Record(path, label=path.parent.name, patient_id=path.stem)
"""
    install("a data set", {"clinic_data": module}, {"covidcxr.datasets": {"clinic": "clinic_data:ClinicDataModule"}})
    for number in range(20):
        write_image(tmp_path / "images" / ("clear", "opaque")[number % 2] / f"{number}.png", draw_image(number))
    data = DATASETS.get("clinic")(str(tmp_path / "images"), image_size=(32, 32))
    data.setup()
    assert len(data.records) == 20
    assert main(["datasets", "check", "clinic", "--root", str(tmp_path / "images")]) == 0


def test_a_loss(install: Install) -> None:
    module = """
from torch import nn

class Squared(nn.Module):
    def forward(self, logits, target):
        return (logits.float().sigmoid() - target).square().mean()
"""
    install("a loss", {"clinic_loss": module}, {"covidcxr.segmentation_losses": {"clinic": "clinic_loss:Squared"}})
    loss = build_segmentation_loss("dice+clinic")
    only_dice = build_segmentation_loss("dice")
    logits, target = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert float(loss(logits, target) - only_dice(logits, target)) == pytest.approx(0.25)


def test_a_network(install: Install) -> None:
    module = """
from torch import nn

def make_network(in_channels, num_classes, width=4):
    head = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
"""
    point = {"covidcxr.classification_networks": {"clinic": "clinic_network:make_network"}}
    install("a network of its own", {"clinic_network": module}, point)
    config = ModelConfig("classification", "clinic", ("ill", "well"), network_args={"width": 2}, preprocess=SMALL)
    assert ClassificationModel(config).predict(torch.rand(3, 1, 32, 32)).shape == (3, 2)


def test_a_preprocessing_step(install: Install) -> None:
    module = "def invert(image, amount=1.0):\n    return image + amount * (1 - 2 * image)\n"
    point = {"covidcxr.preprocess_steps": {"invert": "clinic_step:invert"}}
    install("a preprocessing step", {"clinic_step": module}, point)
    settings = PreprocessConfig(image_size=(32, 32), steps=[{"name": "invert", "amount": 1.0}])
    config = ModelConfig("classification", "timm:test_resnet", ("ill", "well"), preprocess=settings)
    torch.manual_seed(0)
    inverting = ClassificationModel(config)
    torch.manual_seed(0)
    plain = ClassificationModel(ModelConfig("classification", "timm:test_resnet", ("ill", "well"), preprocess=SMALL))
    image = torch.rand(1, 1, 32, 32)
    assert torch.allclose(inverting.predict(image), plain.predict(1 - image), atol=1e-6)
    assert not torch.allclose(inverting.predict(image), plain.predict(image), atol=1e-6)
    with pytest.raises(ConfigError, match="strength"):
        ClassificationModel(
            ModelConfig(
                *("classification", "timm:test_resnet", ("ill", "well")),
                preprocess=PreprocessConfig(image_size=(32, 32), steps=[{"name": "invert", "strength": 2}]),
            )
        )


ROWS = [
    {
        "patient_id": str(number),
        "label": ("ill", "well")[number % 2],
        "probability_ill": ill,
        "probability_well": 1 - ill,
    }
    for number, ill in enumerate([0.9, 0.2, 0.7, 0.6, 0.4, 0.1, 0.8, 0.3])
]


def test_a_score(install: Install) -> None:
    module = """
import numpy as np

def log_loss(weights, probabilities, labels):
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    return weights @ losses / weights.sum(1)
"""
    point = {"covidcxr.classification_scores": {"log_loss": "clinic_score:log_loss"}}
    install("a score", {"clinic_score": module}, point)
    score = score_rows(ROWS)["log_loss"]
    truth = [row[f"probability_{row['label']}"] for row in ROWS]
    assert score.value == pytest.approx(-np.log(np.array(truth, float)).mean())
    assert score.low < score.value < score.high


@pytest.mark.parametrize(
    ("name", "body", "fault"),
    [("accuracy", "weights[:, 0]", "name of a score of covidcxr"), ("mine", "weights", "one number a resample")],
)
def test_a_score_that_does_not_fit_is_refused(install: Install, name: str, body: str, fault: str) -> None:
    module = f"def score(weights, probabilities, labels):\n    return {body}\n"
    install("a score", {"clinic_score": module}, {"covidcxr.classification_scores": {name: "clinic_score:score"}})
    with pytest.raises(ConfigError, match=fault):
        score_rows(ROWS)


VERB = """
def add_count(verbs):
    count = verbs.add_parser("count", help="count images")
    count.add_argument("images", nargs="+")
    count.set_defaults(run=lambda options: print(len(options.images)) or 0)
"""


def test_a_verb(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("a verb of the command line", {"clinic_verb": VERB}, {"covidcxr.verbs": {"count": "clinic_verb:add_count"}})
    assert main(["datasets", "list"]) == 0
    assert "clinic_verb" not in sys.modules  # nobody asked for it
    assert main(["count", "a.png", "b.png"]) == 0
    assert capsys.readouterr().out.endswith("2\n")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "count images" in capsys.readouterr().out


def test_a_verb_that_does_not_fit_is_refused(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    points = {"covidcxr.verbs": {"predict": "clinic_verb:add_count", "gone": "clinic_verb:add_gone"}}
    install("a verb of the command line", {"clinic_verb": VERB}, points)
    assert main(["gone"]) == 2
    assert "'gone': clinic_verb:add_gone of clinic cannot be loaded" in capsys.readouterr().err
    assert main(["--help"]) == 2
    assert "The verb 'predict' of clinic (clinic_verb:add_count) is taken" in capsys.readouterr().err


def test_a_mask_class(tmp_path: Path) -> None:
    assert files_of("a mask class") == 0
    torch.manual_seed(0)
    config = ModelConfig("segmentation", "smp:unet", ("infection", "nodule"), "multilabel", preprocess=SMALL)
    Pipeline(infection_segmenter=SegmentationModel(config)).save_pretrained(tmp_path / "pipeline")
    prediction = Pipeline.from_pretrained(tmp_path / "pipeline")(draw_image(0))
    assert set(prediction.masks) == {"infection", "nodule"}
    written = prediction.save(tmp_path / "answer", "image")
    assert (tmp_path / "answer" / "image.nodule.png").is_file(), written
    assert "nodule" in json.dumps(prediction.to_dict())


def test_a_label(tmp_path: Path) -> None:
    assert files_of("a label") == 0
    write_folder_fake(tmp_path / "images")
    (tmp_path / "images" / "covid19").rename(tmp_path / "images" / "tuberculosis")
    data = FolderDataModule(str(tmp_path / "images"), image_size=(32, 32), patient_pattern="p(.+)_")
    data.setup()
    assert "tuberculosis" in data.classes
    torch.manual_seed(0)
    config = ModelConfig("classification", "timm:test_resnet", data.classes, preprocess=SMALL)
    prediction = Pipeline(classifier=ClassificationModel(config))(draw_image(0))
    assert set(prediction.probabilities) == set(data.classes)
