"""`covidcxr doctor`: check your installation."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from covidcxr import __version__
from covidcxr.errors import CovidCXRError
from covidcxr.utils.plain import json_text

__all__ = ["add_doctor", "examine", "print_findings"]

_PACKAGES = (
    *("torch", "torchvision", "lightning", "torchmetrics", "timm", "segmentation-models-pytorch", "albumentations"),
    *("torchxrayvision", "opencv-python-headless", "numpy", "pillow", "pydicom", "python-gdcm", "safetensors"),
)
_COMPROMISED = {"lightning": {"2.6.2", "2.6.3"}, "pytorch-lightning": {"2.6.2", "2.6.3"}}


def examine() -> dict[str, Any]:
    """Check versions, devices, plug-ins and that every installed pipeline gives its golden outputs.

    Returns:
        `sound` (whether all checks passed), `faults` (a list of sentences), `versions`, `devices`, `registries`,
        `pipelines`.
    """
    from covidcxr.io import pretrained

    versions = {name: _version(name) for name in (*_PACKAGES, "pytorch-lightning")}
    faults = [f"{name} is not installed" for name in _PACKAGES if versions[name] is None]
    faults += [
        f"{name} {versions[name]} is a compromised release: run pip install --upgrade {name}"
        for name, bad in _COMPROMISED.items()
        if versions[name] in bad
    ]
    faults += _unfit_torchvision(versions)
    pipelines = {name: _golden(name) for name in pretrained.available()}
    faults += [f"{name}: {difference}" for name, differences in pipelines.items() for difference in differences]
    if not pretrained.bundled():
        faults.append("no bundled weights: reinstall covidcxr")
    registries = _registries(faults)
    return {
        "sound": not faults,
        "faults": faults,
        "versions": {"covidcxr": __version__, "python": platform.python_version(), **versions},
        "devices": _devices(),
        "registries": registries,
        "pipelines": {name: "differs" if differences else "as saved" for name, differences in pipelines.items()},
    }


def print_findings(findings: dict[str, Any], *, as_json: bool = False) -> None:
    """Print what `examine` returned.

    Args:
        findings: The result of all checks.
        as_json: As one line of JSON instead of text.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if as_json:
        console.file.write(json_text(findings) + "\n")
        return
    for name, installed in findings["versions"].items():
        console.print(f"{name:<30} {installed or 'not installed'}")
    console.print(f"{'devices':<30} {', '.join(findings['devices'])}")
    for kind, names in findings["registries"].items():
        console.print(f"{kind:<30} {len(names)}: {', '.join(names)}")
    for name, state in findings["pipelines"].items():
        console.print(f"{'pipeline ' + name:<30} golden outputs {state}")
    for fault in findings["faults"]:
        console.print(f"fault: {fault}", style="red")
    console.print("All checks passed." if findings["sound"] else f"{len(findings['faults'])} check(s) failed.")
    console.print("For research only; not for clinical use.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _unfit_torchvision(versions: dict[str, str | None]) -> list[str]:
    """Torch for the CPU with torchvision for CUDA, say: their versions agree, and torchvision cannot be imported."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return []  # "is not installed" is said already
    except RuntimeError as error:
        pair = f"torchvision {versions['torchvision']} does not fit torch {versions['torch']} ({error})"
        return [f"{pair}: install both anew by one command, from the same place (page Install of the documentation)"]
    return []


def _golden(name: str) -> list[str]:
    from covidcxr.io import pretrained
    from covidcxr.pipeline.parts import check_golden
    from covidcxr.pipeline.pipeline import Pipeline

    try:
        pipeline, golden = Pipeline.from_pretrained(name), pretrained.fetch(name) / "golden"
        # What a package publishes may be a single model, which has no golden inputs: that it loads is all to check.
        return [] if not golden.exists() and name not in pretrained.bundled() else check_golden(pipeline, golden)
    except CovidCXRError as error:
        return [str(error)]


def _devices() -> list[str]:
    import torch

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    return [*devices, "mps"] if torch.backends.mps.is_available() else devices


def _registries(faults: list[str]) -> dict[str, tuple[str, ...]]:
    from covidcxr import registry

    names = {}
    for table in (getattr(registry, word) for word in registry.__all__ if word.isupper()):
        try:
            names[table.group.removeprefix("covidcxr.")] = table.names()
        except CovidCXRError as error:
            faults.append(str(error))
    return names


def add_doctor(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `doctor`.

    Args:
        verbs: Where the verbs are added.
    """
    doctor = verbs.add_parser(
        "doctor",
        help="check this installation and the installed weights",
        description="Check versions, plug-ins, devices, and that the installed weights give their golden outputs.",
        epilog="example: covidcxr doctor --json",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import show_status

    with show_status("checking packages, devices and bundled weights"):
        findings = examine()
    print_findings(findings, as_json=options.json)
    return 0 if findings["sound"] else 1
