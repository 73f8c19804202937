"""The first training of a reader: the lines of the README, on drawn images, give a model that is worth its name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from covidcxr import ClassificationModel
from covidcxr.evaluation import score_rows
from covidcxr.io.image import write_image
from covidcxr.phantom import draw_dataset

README = Path(__file__).parents[2] / "README.md"
LEAST_AUROC = 0.8
"""What the README's lines reach on 120 drawn images of 128 x 128: 18 test images, which no model has seen."""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 45 seconds of CPU time
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_the_lines_of_the_readme_train_a_model_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, phantom in enumerate(draw_dataset(120, size=(128, 128))):
        folder = Path("my-films") / phantom.label
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"p{number:03d}_1.png", phantom.image)
    section = README.read_text(encoding="utf-8").split("[start:train] -->")[1].split("[end:train]")[0]
    code = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    scope: dict[str, Any] = {}
    torch.manual_seed(0)  # fresh layers are drawn from the global generator
    exec(compile(code, "README.md", "exec"), scope)

    auroc = score_rows(scope["task"].rows)["macro_auroc"]
    assert auroc.value >= LEAST_AUROC, auroc
    epochs = json.loads((Path("my-model") / "history.json").read_text(encoding="utf-8"))
    best = max(range(len(epochs)), key=lambda epoch: epochs[epoch]["val/auroc"])
    kept = [path.stem for path in Path("my-model").rglob("best-*.ckpt")]
    assert kept == [f"best-epoch={best}"]
    saved = ClassificationModel.from_pretrained("my-model")
    assert saved.config.temperature != 1, "it is calibrated"
    for name, weight in scope["task"].model.state_dict().items():
        assert (saved.state_dict()[name] == weight).all(), "the saved weights are those that were tested"
