"""`covidcxr doctor`: check your installation.

Without `--full` no large package is imported: what is said then stands in the files that packages install. What only an
import tells (does torch load here, are the answers of the weights those that were saved) is left to `--full`.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
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
_REINSTALL = "install both anew by one command, from the same place (page Install of the documentation)"
_LARGEST_WEIGHTS = 10_000_000_000
"""Bytes of a file of weights that is hashed."""


def examine(*, full: bool = False) -> dict[str, Any]:
    """Check versions, requirements, devices, plug-ins and the files of the installed weights.

    Args:
        full: Also import torch and torchvision, list the devices that torch sees, and run every installed pipeline on
            its golden inputs. Without it, devices are those that the driver or the platform names, and of weights it is
            checked that their files are the ones that were saved.

    Returns:
        `sound` (whether all checks passed), `faults` (a list of sentences), `full`, `versions`, `builds` (what torch
        and torchvision are built for, None where their files do not say), `devices`, `registries`, `pipelines`.
    """
    from covidcxr.io import pretrained

    versions = {name: _version(name) for name in (*_PACKAGES, "pytorch-lightning")}
    builds = {"torch": _torch_build(), "torchvision": _label(_stated("torchvision"))}
    faults = [f"{name} is not installed" for name in _PACKAGES if versions[name] is None]
    faults += [
        f"{name} {versions[name]} is a compromised release: run pip install --upgrade {name}"
        for name, bad in _COMPROMISED.items()
        if versions[name] in bad
    ]
    faults += [fault for owner in ("covidcxr", "torchvision") for fault in _unmet(owner)]
    unfit = _unfit_builds(versions, builds)
    unimported = _unimported(versions) if full else []
    faults += unimported or unfit  # both name the same pair
    runs = full and not unimported
    pipelines = {name: (_check_golden if runs else _check_files)(name) for name in pretrained.available()}
    faults += [f"{name}: {difference}" for name, differences in pipelines.items() for difference in differences]
    if not pretrained.bundled():
        faults.append("no bundled weights: reinstall covidcxr")
    registries = _registries(faults)
    good, bad = ("as saved", "differs") if runs else ("files as saved", "files differ")
    return {
        "sound": not faults,
        "faults": list(dict.fromkeys(faults)),
        "full": full,
        "versions": {"covidcxr": __version__, "python": platform.python_version(), **versions},
        "builds": builds,
        "devices": _torch_devices() if runs else _devices(builds["torch"]),
        "registries": registries,
        "pipelines": {name: bad if differences else good for name, differences in pipelines.items()},
    }


def print_findings(findings: dict[str, Any], *, as_json: bool = False) -> None:
    """Print what `examine` returned.

    Args:
        findings: The result of all checks.
        as_json: As one line of JSON instead of text.
    """
    if as_json:
        print(json_text(findings))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    for name, installed in findings["versions"].items():
        build = f" (built for {findings['builds'][name]})" if findings["builds"].get(name) else ""
        console.print(f"{name:<30} {installed or 'not installed'}{build}")
    console.print(f"{'devices':<30} {', '.join(findings['devices'])}")
    for kind, names in findings["registries"].items():
        console.print(f"{kind:<30} {len(names)}: {', '.join(names) or 'none'}")
    for name, state in findings["pipelines"].items():
        console.print(f"{'pipeline ' + name:<30} {'' if state.startswith('files') else 'golden outputs '}{state}")
    for fault in findings["faults"]:
        console.print(f"fault: {fault}", style="red")
    console.print("All checks passed." if findings["sound"] else f"{len(findings['faults'])} check(s) failed.")
    if not findings["full"]:
        console.print("Not tried without --full: to import torch and torchvision, and to run the weights.")
    console.print("For research only; not for clinical use.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _stated(package: str) -> dict[str, Any]:
    """Return the constants that `version.py` of a package sets; the file is read, and nothing in it runs."""
    spec = find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        try:
            tree = ast.parse((Path(place) / "version.py").read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        return {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
    return {}


def _label(stated: dict[str, Any]) -> str | None:
    """Say in words what `+cu130`, `+cpu` or `+rocm6.4` at the end of a version means; None where it has no such end."""
    label = str(stated.get("__version__", "")).partition("+")[2]
    if label.startswith("cu") and label[2:].isdecimal() and len(label) > 4:
        return f"CUDA {label[2:-1]}.{label[-1]}"
    if label.startswith("rocm"):
        return f"ROCm {label[4:]}"
    return {"cpu": "CPU", "xpu": "XPU"}.get(label)


def _torch_build() -> str | None:
    stated = _stated("torch")
    kinds = {"CUDA": stated.get("cuda"), "ROCm": stated.get("rocm") or stated.get("hip"), "XPU": stated.get("xpu")}
    return next((f"{kind} {number}" for kind, number in kinds.items() if number), "CPU" if stated else None)


def _unmet(owner: str) -> Iterator[str]:
    """Name what a distribution requires and what is there in its place."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires(owner) or ()]
    except PackageNotFoundError:  # covidcxr in a folder of sources
        return
    for need in needed:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        if (installed := _version(need.name)) is None:
            yield f"{need.name} is not installed"
        elif not need.specifier.contains(installed, prereleases=True):
            yield (
                f"{owner} {_version(owner)} needs {need.name} {need.specifier}, and {installed} is installed: "
                f'pip install "{need.name}{need.specifier}"'
            )


def _unfit_builds(versions: dict[str, str | None], builds: dict[str, str | None]) -> list[str]:
    """Torch for the CPU with torchvision for CUDA, say: torchvision then cannot be imported.

    The other way round it can: torchvision for the CPU needs nothing of CUDA.
    """
    torch, torchvision = builds["torch"], builds["torchvision"]
    if torch is None or torchvision in (None, "CPU") or torch.partition(".")[0] == str(torchvision).partition(".")[0]:
        return []
    pair = f"torchvision {versions['torchvision']} does not fit torch {versions['torch']}"
    return [f"{pair} (one is built for {torchvision}, the other for {torch}): {_REINSTALL}"]


def _unimported(versions: dict[str, str | None]) -> list[str]:
    """Torch or torchvision that cannot be imported: of builds that do not fit, say, or a library is missing."""
    for name in ("torch", "torchvision"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            return [f"{name} is not installed"]
        except (ImportError, OSError, RuntimeError) as error:
            pair = f"{name} {versions[name]} cannot be imported"
            if name == "torchvision":
                pair = f"torchvision {versions['torchvision']} does not fit torch {versions['torch']}"
            return [f"{pair} ({error}): {_REINSTALL}"]
    return []


def _check_files(name: str) -> list[str]:
    """Compare the hashes of a pipeline's weights with those in its configs; nothing is loaded."""
    from covidcxr.io import pretrained

    try:
        folder = pretrained.fetch(name)
        index = folder / "pipeline.json"
        parts = pretrained.read_json(index).get("components", ()) if index.is_file() else ("",)
        for part in parts:
            pretrained.read_json(folder / part / "config.json")
            for path in (folder / part).rglob("config.json"):  # an ensemble has one a member
                if isinstance(sha256 := pretrained.read_json(path).get("weights_sha256"), str):
                    pretrained.check_file(path.with_name("model.safetensors"), _LARGEST_WEIGHTS)
                    pretrained.check_sha256(path.with_name("model.safetensors"), sha256)
    except CovidCXRError as error:
        return [str(error)]
    return []


def _check_golden(name: str) -> list[str]:
    from covidcxr.io import pretrained
    from covidcxr.pipeline.parts import check_golden
    from covidcxr.pipeline.pipeline import Pipeline

    try:
        pipeline, golden = Pipeline.from_pretrained(name), pretrained.fetch(name) / "golden"
        # What a package publishes may be a single model, which has no golden inputs: that it loads is all to check.
        return [] if not golden.exists() and name not in pretrained.bundled() else check_golden(pipeline, golden)
    except CovidCXRError as error:
        return [str(error)]


def _devices(torch_build: str | None) -> list[str]:
    """Name devices without torch: NVIDIA cards as the driver names them, and the platform where torch has Metal."""
    from covidcxr.utils.threads import count_cores

    devices = [f"cpu ({count_cores()} threads)"]
    newest, cards = _nvidia_cards()
    for number, card in enumerate(cards):
        if torch_build is None or not torch_build.startswith("CUDA"):
            devices.append(f"{card} (not used: torch is built for {torch_build or 'an unknown device'})")
        elif newest < int(torch_build.removeprefix("CUDA ").partition(".")[0]):
            devices.append(f"{card} (not used: its driver is for CUDA {newest}, torch is built for {torch_build})")
        else:
            devices.append(f"cuda:{number} {card}")
    if torch_build and torch_build.startswith(("ROCm", "XPU")):
        devices.append(f"{torch_build.partition(' ')[0]} (its devices are listed by --full)")
    return [*devices, "mps"] if (platform.system(), platform.machine()) == ("Darwin", "arm64") else devices


def _nvidia_cards() -> tuple[int, list[str]]:
    """Ask NVIDIA's driver for the newest CUDA that it runs (the first number), and for the names of its cards."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0, []
    newest, count, card = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(newest))
    if failed or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0, []
    names = []
    for number in range(count.value):
        failed = driver.cuDeviceGet(ctypes.byref(card), number) or driver.cuDeviceGetName(name, len(name), card)
        names.append("NVIDIA card" if failed else name.value.decode(errors="replace"))
    return newest.value // 1000, names


def _torch_devices() -> list[str]:
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
        description="Check versions, requirements, devices, plug-ins, and that the files of the installed weights are "
        "the ones that were saved. This imports neither torch nor anything else of size; --full does.",
        epilog="examples: covidcxr doctor --json; covidcxr doctor --full",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--full",
        action="store_true",
        help="also import torch and torchvision, list the devices that torch sees, and check that the installed "
        "weights give their golden outputs",
    )
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import show_status

    with show_status("checking packages, devices and bundled weights"):
        findings = examine(full=options.full)
    print_findings(findings, as_json=options.json)
    return 0 if findings["sound"] else 1
