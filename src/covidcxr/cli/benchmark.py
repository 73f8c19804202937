"""`covidcxr benchmark`: what reading and answering an image costs on this machine, beside what others take."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from covidcxr import __version__
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr import Pipeline

__all__ = ["add_benchmark", "measure"]

Work: TypeAlias = Callable[[Path], object]

_PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "timm", "segmentation-models-pytorch")
_MORE = ("torchxrayvision", "onnxruntime")
_LABELS = ("normal", "covid19", "pneumonia")
_WORDS = {"gate": "view check", "infection_segmenter": "infection segmenter"}
_SAMPLE = 256
_MEMORY = """
import sys, torch
from covidcxr import Pipeline
status = lambda: next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
bare = status()
pipeline = Pipeline.from_pretrained(sys.argv[1])
for _ in range(5):
    pipeline(sys.argv[2])
print(bare, status())
"""


def add_benchmark(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: The verbs of `covidcxr`.
    """
    verb = verbs.add_parser(
        "benchmark",
        help="what an image costs on this machine",
        description="Measure what reading an image and answering it costs on this machine: drawn images as JPEG and "
        "PNG, every competitor on the same image in turns. OMP_NUM_THREADS=1 measures one core. Times are longer where "
        "other programs run; ratios hardly change.",
    )
    verb.add_argument("--model", default="mini", help="name or folder of a pipeline (%(default)s)")
    verb.add_argument("--onnx", metavar="FOLDER", help="what `covidcxr export` wrote: measured too, by ONNX Runtime")
    verb.add_argument(
        "--size", type=int, default=1024, metavar="N", help="height and width of the images (%(default)s)"
    )
    verb.add_argument("--images", type=int, default=12, metavar="N", help="number of images (%(default)s)")
    verb.add_argument("--no-peers", action="store_true", help="leave the networks of others out")
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import show_status

    with show_status("Measuring") as say:
        results = measure(
            options.model,
            onnx=options.onnx,
            size=options.size,
            images=options.images,
            peers=not options.no_peers,
            say=say,
        )
    if options.json:
        sys.stdout.write(json_text(results) + "\n")
    else:
        _print(results)
    return 0


def measure(
    model: str = "mini",
    *,
    onnx: str | None = None,
    size: int = 1024,
    images: int = 12,
    peers: bool = True,
    say: Callable[[str], object] = lambda words: None,
) -> dict[str, Any]:
    """Measure what reading and answering an image costs.

    Args:
        model: Name or folder of a pipeline.
        onnx: Folder of an export of a pipeline, to be measured too; None = none.
        size: Height and width of the drawn images, in pixels.
        images: How many are drawn.
        peers: Whether networks of others are measured too, with fresh weights: their cost does not depend on them.
        say: Is told what is being measured.

    Returns:
        `machine`, `reading` and `answering`: of each competitor the medians `cpu_ms` (all threads) and `wall_ms`, and
        `ratio`, its CPU time by that of the first; `memory_mb` of a process that answers, where the system tells.

    Raises:
        ConfigError: If a number is too small.
        PretrainedError: If there is no such pipeline or export.
    """
    import cv2
    import torch

    from covidcxr import Pipeline
    from covidcxr.config.checks import check_whole

    images = check_whole(images, "images", 1, 10_000)
    size = check_whole(size, "size", 64, 10_000)
    cv2.setNumThreads(torch.get_num_threads())
    results: dict[str, Any] = {"machine": _machine() | {"images": images, "size": size}}
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: _draw(Path(folder), kind, images, size) for kind in ("jpg", "png", "dcm")}
        say("reading")
        results["reading"] = {kind: _compare(_readers(kind, paths), paths) for kind, paths in files.items()}
        say("answering")
        pipeline = Pipeline.from_pretrained(model)
        results["answering"] = _compare(dict(_answerers(model, pipeline, onnx, peers)), files["jpg"])
        say("memory")
        results["memory_mb"] = _memory(model, files["jpg"][0])
    return results


def _draw(folder: Path, kind: str, images: int, size: int) -> list[Path]:
    import numpy as np
    from PIL import Image

    from covidcxr.phantom import draw_phantom

    paths = [folder / f"{number}.{kind}" for number in range(images)]
    for number, path in enumerate(paths):
        image = draw_phantom(number, label=_LABELS[number % 3], size=(size, size)).image  # type: ignore[arg-type]
        if kind == "dcm":
            _write_dicom(path, np.rint(image * 4095).astype(np.uint16))
        else:
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(path, quality=90)
    return paths


def _write_dicom(path: Path, values: Any) -> None:
    """Write a radiograph as machines do: 12 bits in 16, not compressed, inverted, with a window."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    file.Rows, file.Columns, file.SamplesPerPixel = values.shape[0], values.shape[1], 1
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PhotometricInterpretation, file.RescaleSlope, file.RescaleIntercept = "MONOCHROME1", 1, 0
    file.WindowCenter, file.WindowWidth = 2048, 3600
    file.PixelData = (4095 - values).tobytes()
    file.save_as(path, enforce_file_format=True)


def _readers(kind: str, paths: Sequence[Path]) -> Mapping[str, Work]:
    """Return ways to a sample of 256 x 256; the first checks nothing: no cut file, no orientation, no aspect ratio.

    Of DICOM it gives the stored values, neither windowed nor inverted.
    """
    import cv2
    import numpy as np
    import torch

    from covidcxr import read_image
    from covidcxr.data import CXRDataset, Record

    def bare(path: Path) -> object:
        image = np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE))
        small = np.asarray(cv2.resize(image, (_SAMPLE, _SAMPLE), interpolation=cv2.INTER_AREA))
        return torch.from_numpy(small).float()[None] / 255

    def bare_dicom(path: Path) -> object:
        from pydicom import dcmread

        small = cv2.resize(dcmread(path).pixel_array, (_SAMPLE, _SAMPLE), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.asarray(small, np.float32))[None] / 4095

    samples = CXRDataset([Record(path) for path in paths], classes=("normal",), image_size=(_SAMPLE, _SAMPLE))
    places = {path: place for place, path in enumerate(paths)}

    def sample(path: Path) -> object:
        return samples[places[path]]

    first: dict[str, Work] = {"bare cv2: decode and resize": bare}
    if kind == "dcm":
        first = {"bare pydicom, and cv2 to resize": bare_dicom}
    return first | {"a sample of CXRDataset": sample, "read_image, whole size": read_image}


def _answerers(model: str, pipeline: Pipeline, onnx: str | None, peers: bool) -> Iterator[tuple[str, Work]]:
    from covidcxr import ModelConfig, Pipeline, SegmentationModel

    yield f"{model}, whole", pipeline
    parts = pipeline.models()
    for part in parts.keys() - {"lung_segmenter"} if "lung_segmenter" in parts else ():
        rest: dict[str, Any] = {name: each for name, each in parts.items() if name != part}
        yield f"{model} without its {_WORDS.get(part, part)}", Pipeline(**rest)
    if onnx is not None:
        yield f"{model} by ONNX Runtime", Pipeline.from_pretrained(onnx, backend="onnx")
    if peers:
        config = ModelConfig(
            "segmentation", "smp:fpn", ("lung_field", "lung"), "multilabel", {"encoder": "densenet121"}
        )
        yield "FPN with DenseNet121 at 256, lungs only", Pipeline(lung_segmenter=SegmentationModel(config))
        yield "torchxrayvision's DenseNet121 at 224, classifier only", _densenet()
        yield "torchxrayvision's PSPNet at 512, masks only", _pspnet()


def _densenet() -> Work:
    from torchxrayvision.models import DenseNet

    return _network(DenseNet(num_classes=18).eval(), 224, 1)


def _pspnet() -> Work:
    from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

    return _network(pspnet(14).eval(), 512, 3)


def _network(network: Any, size: int, channels: int) -> Work:
    import torch

    from covidcxr import read_image

    def answer(path: Path) -> object:
        image = torch.from_numpy(read_image(path))[None, None].expand(1, channels, -1, -1)
        with torch.inference_mode():
            return network(torch.nn.functional.interpolate(image, size=(size, size), mode="bilinear"))

    return answer


def _compare(competitors: Mapping[str, Work], paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Let all answer the same image in turns; the first time, which loads what is needed, does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in competitors}
    for path in (paths[0], *paths):
        for name, work in competitors.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work(path)
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {
        name: [1000 * statistics.median(each) for each in zip(*own[1:], strict=True)] for name, own in times.items()
    }
    first = next(iter(medians.values()))[0]
    return {
        name: {"cpu_ms": cpu, "wall_ms": wall, "ratio": cpu / first if first else 1.0}
        for name, (cpu, wall) in medians.items()
    }


def _memory(model: str, path: Path) -> dict[str, int] | None:
    """Return the peak of a process that loads a pipeline and answers, and what `import torch` takes of it."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", _MEMORY, model, str(path)]
    bare, peak = subprocess.run(command, capture_output=True, check=True).stdout.split()
    return {"import_torch": int(bare), "peak": int(peak)}


def _machine() -> dict[str, Any]:
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        )
        cpu = next(named, cpu)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts = {"covidcxr": __version__, "python": platform.python_version()}
    for name in (*_PACKAGES, *_MORE):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": load, "versions": facts}


def _print(results: Mapping[str, Any]) -> None:
    from rich.table import Table

    from covidcxr.utils.console import print_line, print_table

    machine = results["machine"]
    load = "unknown" if machine["load"] is None else f"{machine['load']:.1f}"
    print_line(f"{machine['cpu']}, {machine['cores']} cores; {machine['threads']} thread(s) of torch; load {load}")
    print_line(", ".join(f"{name} {release}" for name, release in machine["versions"].items()))
    titles = {f"reading: {kind}": rows for kind, rows in results["reading"].items()} | {
        "answering: jpg": results["answering"]
    }
    for title, rows in titles.items():
        table = Table(title=f"{title}, {machine['size']} x {machine['size']} pixels", title_justify="left")
        for column in ("", "CPU ms", "wall ms", "ratio"):
            table.add_column(column, justify="left" if not column else "right")
        for name, row in rows.items():
            table.add_row(name, f"{row['cpu_ms']:.1f}", f"{row['wall_ms']:.1f}", f"{row['ratio']:.2f}")
        print_table(table)
    if results["memory_mb"]:
        memory = results["memory_mb"]
        print_line(
            f"A process that answers peaks at {memory['peak']} MB, of which import torch {memory['import_torch']}."
        )
