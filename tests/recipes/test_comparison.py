"""Tables and curves beside a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from covidcxr.errors import PretrainedError
from covidcxr.networks.weights import read_weights
from covidcxr.recipes.ensemble import EnsembleStep
from covidcxr.recipes.sweep import _class_table, _draw_curves, _epoch_table, _write_table


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": number, "train/loss": 1 / (number + 1), "train/f1": number / 100, "val/f1": number / 50, "val/x": 0.5}
        for number in range(epochs)
    ]


def test_values_stand_by_epoch() -> None:
    table = _epoch_table({"sgd": history(20), "adam": history(7), "none": []})
    assert table[0] == ["run", "epochs", "training loss", "training f1", "validation f1"]
    assert table[1:] == [
        ["sgd", "5", "0.2000", "0.0400", "0.0800"],
        ["sgd", "10", "0.1000", "0.0900", "0.1800"],
        ["sgd", "20", "0.0500", "0.1900", "0.3800"],
        ["adam", "5", "0.2000", "0.0400", "0.0800"],
        ["adam", "7", "0.1429", "0.0600", "0.1200"],
    ]
    assert _epoch_table({"none": []}) == []


def test_each_class_of_more_than_two_has_its_scores() -> None:
    score = {"value": 0.9, "low": 0.8, "high": 0.95, "count": 10, "patients": 9}
    two = {f"sensitivity_{name}": score for name in ("no", "yes")}
    three = {f"{kind}_{name}": score for name in "abc" for kind in ("sensitivity", "specificity", "precision", "f1")}
    table = _class_table({"two": two, "three": three})
    assert table[0] == ["run", "class", "sensitivity", "specificity", "precision", "f1", "auroc"]
    assert [row[:2] for row in table[1:]] == [["three", "a"], ["three", "b"], ["three", "c"]]
    assert all(row[2].startswith("0.900 [0.800, 0.950") and row[-1] == "-" for row in table[1:])
    assert _class_table({"two": two}) == []


def test_curves_of_one_epoch_are_seen(tmp_path: Path) -> None:
    _draw_curves({"sgd": history(1), "adam": history(1)}, tmp_path / "one.png")
    _draw_curves({"sgd": [], "adam": []}, tmp_path / "none.png")
    assert (tmp_path / "one.png").stat().st_size > 5000
    assert not (tmp_path / "none.png").exists()


def test_an_empty_table_is_not_written(tmp_path: Path) -> None:
    _write_table([], tmp_path / "none.md")
    _write_table([["a", "b"], ["1", "2"]], tmp_path / "one.md")
    assert not (tmp_path / "none.md").exists()
    assert (tmp_path / "one.md").read_text() == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize(("given", "used"), [(True, True), (False, False), ("weights", "weights")])
def test_weights_of_the_runs_reach_boosting(given: object, used: object) -> None:
    step = EnsembleStep("soft", {"pretrained_backbone": True})
    settings = {"model": {"init_args": {"pretrained_backbone": given}}}
    assert step.with_weights(settings).boosting["pretrained_backbone"] == used
    own = EnsembleStep("soft", {"pretrained_backbone": "own.pth"})
    assert own.with_weights(settings) is own


def test_each_network_finds_its_weights_in_a_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "resnet18.safetensors")
    torch.save({"b": torch.zeros(3)}, tmp_path / "resnet50.pth")
    assert torch.equal(read_weights("resnet18", str(tmp_path))["a"], torch.ones(2))
    assert torch.equal(read_weights("xrv:resnet50", str(tmp_path))["b"], torch.zeros(3))
    with pytest.raises(PretrainedError, match=r"'vgg16'.*it has no model\.safetensors"):
        read_weights("vgg16", str(tmp_path))
