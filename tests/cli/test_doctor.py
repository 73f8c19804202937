"""`covidcxr doctor`: what it tells without importing anything large, and what `--full` adds."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from covidcxr.cli import doctor, main
from covidcxr.io import pretrained


def told(capsys: Any, *flags: str) -> dict[str, Any]:
    code = main(["doctor", "--json", *flags])
    findings: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if findings["sound"] else 1)
    return findings


def install(folder: Path, name: str, version_file: str, metadata: str = "") -> None:
    """Write a package that fails where it is imported, with its metadata."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / name / "version.py").write_text(version_file + "raise SystemExit('run')\n")
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{metadata}")


@pytest.mark.parametrize(("flags", "state"), [((), "files as saved"), (("--full",), "as saved")])
def test_it_passes_on_this_installation(flags: tuple[str, ...], state: str, capsys: Any) -> None:
    findings = told(capsys, *flags)
    assert findings["sound"]
    assert findings["full"] == bool(flags)
    assert findings["pipelines"]["mini"] == state
    assert "dice" in findings["registries"]["segmentation_losses"]
    assert findings["devices"][0].startswith("cpu (")


def test_both_ways_name_the_same_build_of_torch() -> None:
    import torch

    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    assert doctor._torch_build() == build


def test_it_says_what_it_did_not_try(capsys: Any) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "All checks passed." in text
    assert "Not tried without --full" in text


def test_full_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("covidcxr.pipeline.parts.check_golden", lambda *_: ["film-0: the mask lung agrees only to 0.5"])
    monkeypatch.setattr("covidcxr.cli.doctor._COMPROMISED", {"lightning": {__import__("lightning").__version__}})
    findings = told(capsys, "--full")
    assert any("compromised" in fault for fault in findings["faults"])
    assert any("agrees only" in fault for fault in findings["faults"])
    assert findings["pipelines"]["mini"] == "differs"


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_harmed_weights_are_named(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(pretrained.fetch("mini"), tmp_path / "mini")
    weights = tmp_path / "mini" / "classifier" / "model.safetensors"
    if harm == "missing":
        weights.unlink()
    else:
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    monkeypatch.setattr(pretrained, "_bundled_folder", lambda: tmp_path)
    findings = told(capsys)
    assert findings["pipelines"]["mini"] == "files differ"
    assert any(str(weights) in fault for fault in findings["faults"])


@pytest.mark.parametrize(
    ("torch", "torchvision", "fault"),
    [
        (
            "__version__ = '1.0+cpu'\ncuda: str | None = None\n",
            "__version__ = '1.0+cu130'\n",
            "CUDA 13.0, the other for CPU",
        ),
        (
            "__version__ = '1.0+cu128'\ncuda = '12.8'\n",
            "__version__ = '1.0+cu130'\n",
            "CUDA 13.0, the other for CUDA 12.8",
        ),
        ("__version__ = '1.0+cu128'\ncuda = '12.8'\n", "__version__ = '1.0+cu126'\n", None),
        ("__version__ = '1.0'\ncuda = '12.8'\n", "__version__ = '1.0'\n", None),
        ("__version__ = '1.0+cu128'\ncuda = '12.8'\n", "__version__ = '1.0+cpu'\n", None),
    ],
)
def test_builds_that_do_not_fit_are_named_without_importing_them(
    torch: str, torchvision: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install(tmp_path, "torch", torch, "Version: 1.0\n")
    install(tmp_path, "torchvision", torchvision, "Version: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torch", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    faults = [text for text in told(capsys)["faults"] if text.startswith("torchvision 1.0 does not fit torch 1.0")]
    assert len(faults) == (fault is not None)
    if fault:
        assert fault in faults[0]
        assert "by one command" in faults[0]


def test_a_requirement_that_is_not_met_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    needs = "Version: 1.0\nRequires-Dist: torch==1.5\nRequires-Dist: never-there; extra == 'more'\n"
    install(tmp_path, "torchvision", "__version__ = '1.0'\n", needs)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    faults = told(capsys)["faults"]
    assert any(text.startswith("torchvision 1.0 needs torch ==1.5, and ") for text in faults)
    assert not any("never-there" in text for text in faults)


def test_full_knows_a_torchvision_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (fault,) = doctor._unimported({"torch": "2.13.0+cpu", "torchvision": "0.28.0"})
    assert "torchvision 0.28.0 does not fit torch 2.13.0+cpu" in fault
    assert "by one command" in fault


def driver() -> SimpleNamespace:
    """NVIDIA's driver with two cards, for CUDA 12.4."""

    def put(target: Any, value: int) -> int:
        target._obj.value = value
        return 0

    def name_card(name: Any, length: int, card: Any) -> int:
        name.value = f"Card {card.value}".encode()
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDriverGetVersion=lambda version: put(version, 12040),
        cuDeviceGetCount=lambda count: put(count, 2),
        cuDeviceGet=put,
        cuDeviceGetName=name_card,
    )


@pytest.mark.parametrize(
    ("build", "devices"),
    [
        ("CUDA 12.8", ["cuda:0 Card 0", "cuda:1 Card 1"]),
        (
            "CUDA 13.0",
            [f"Card {n} (not used: its driver is for CUDA 12, torch is built for CUDA 13.0)" for n in (0, 1)],
        ),
        ("CPU", [f"Card {n} (not used: torch is built for CPU)" for n in (0, 1)]),
    ],
)
def test_cards_are_named_by_their_driver(build: str, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver())
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert doctor._devices(build)[1:] == devices
