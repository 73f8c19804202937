"""Saved pipelines as an enemy, a broken disk or a careless hand leaves them, each made from a sound one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["CASES"]

Spoil = Callable[[Path], None]
CASES: dict[str, Spoil] = {}
"""From a name to what makes the folder of a sound pipeline hostile."""

PARTS = ("gate", "lung_segmenter", "infection_segmenter", "classifier")


def case(name: str, spoil: Spoil) -> None:
    assert name not in CASES
    CASES[name] = spoil


def edit(file: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the content of a JSON file."""

    def spoil(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))

    return spoil


def put(file: str, *keys: str, value: Any) -> Spoil:
    """Set one value, at a path of keys, of a JSON file."""

    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit(file, change)


def write(file: str, content: str | bytes) -> Spoil:
    return lambda folder: void((folder / file).write_bytes(content.encode() if isinstance(content, str) else content))


def void(_: object) -> None:
    """Drop a result."""


def instead(file: str, make: Callable[[Path], object]) -> Spoil:
    """Remove a file or folder, and let `make` put something in its place."""

    def spoil(folder: Path) -> None:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return spoil


def weights(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Change the tensors of a part, with the hash that then stands in its config."""

    def spoil(folder: Path) -> None:
        path = folder / part / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        rehash(folder / part)

    return spoil


def rehash(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    put("config.json", "weights_sha256", value=digest)(folder)


def raw_weights(content: Callable[[bytes], bytes], *, hashed: bool = True) -> Spoil:
    """Change the bytes of the classifier's weights."""

    def spoil(folder: Path) -> None:
        path = folder / "classifier" / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))
        if hashed:
            rehash(path.parent)

    return spoil


def sparse(path: Path, size: int = 2**40) -> None:
    """Make a file that looks endless and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def link_outside(path: Path) -> None:
    """Leave a link to the same of the sound pipeline, which lies beside the hostile one."""
    sound = next(above / "sound" for above in path.parents if (above / "sound").is_dir())
    path.symlink_to(sound / path.relative_to(sound.with_name("model")))


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)


def replaced(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors)] = make(tensors[first(tensors)])

    return change


# --- JSON ----------------------------------------------------------------------------------------------------------

TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "cut": '{"format_version": 1, "comp',
    "binary": bytes(range(256)),
    "utf-16": "{}".encode("utf-16"),
    "list": "[]",
    "null": "null",
    "number": "1e999",
    "text": '"config"',
    "table": "{}",
    "deep": "[" * 200_000,
    "deep-table": '{"a":' * 300 + "1" + "}" * 300,
    "twice": '{"format_version": 1, "format_version": 1, "task": "classification", "task": "segmentation"}',
    "huge": '{"a": "' + "x" * 5_000_000 + '"}',
    "long-text": '{"task": "' + "x" * 20_000 + '"}',
    "digits": '{"format_version": ' + "9" * 10_000 + "}",
}
JSONS = ("pipeline.json", "classifier/config.json")
for json_file in JSONS:
    place = json_file.partition("/")[0]
    for kind, text in TEXTS.items():
        case(f"{place}-{kind}", write(json_file, text))
    case(f"{place}-missing", instead(json_file, lambda path: None))
    case(f"{place}-folder", instead(json_file, lambda path: path.mkdir()))
    case(f"{place}-fifo", instead(json_file, os.mkfifo))
    case(f"{place}-zero", instead(json_file, lambda path: path.symlink_to("/dev/zero")))
    case(f"{place}-itself", instead(json_file, lambda path: path.symlink_to(path)))
    case(f"{place}-sparse", instead(json_file, sparse))
    case(f"{place}-outside", instead(json_file, link_outside))
    case(f"{place}-newer", put(json_file, "format_version", value=99))
    case(f"{place}-version-text", put(json_file, "format_version", value="1"))
    case(f"{place}-unknown-key", put(json_file, "on_load", value="os.system('touch x')"))

# --- values of every wrong type ------------------------------------------------------------------------------------

WRONG = (None, True, -1, 0, 10**400, 1e308, "", "x", [], {}, [[]], [None], {"a": {"b": []}}, ["x"] * 2000, "../x")
KEYS = {
    "pipeline.json": ("components", "postprocess", "min_lung_area", "format_version"),
    "classifier/config.json": (
        *("task", "network", "classes", "mode", "network_args", "preprocess", "thresholds", "temperature"),
        *("positive", "format_version", "weights_sha256"),
    ),
}
draw = random.Random(0)
for json_file, keys in KEYS.items():
    for key in keys:
        for number, wrong in enumerate(draw.sample(WRONG, 3)):
            case(f"{json_file.partition('/')[0]}-{key}-{number}", put(json_file, key, value=wrong))
for key in ("image_size", "channels", "mean", "std", "fit", "region", "lung_dilation", "steps"):
    for number, wrong in enumerate(draw.sample(WRONG, 2)):
        case(f"preprocess-{key}-{number}", put("classifier/config.json", "preprocess", key, value=wrong))

# --- bombs ---------------------------------------------------------------------------------------------------------

SIZES = {"million": [10**6, 10**6], "thin": [8, 10**9], "zero": [0, 0], "three": [32, 32, 32], "half": [32.5, 32]}
for kind, size in SIZES.items():
    case(f"size-{kind}", put("classifier/config.json", "preprocess", "image_size", value=size))
TEMPERATURES = {"denormal": 5e-324, "zero": 0, "infinite": float("inf"), "nan": float("nan"), "negative": -1.0}
for kind, value in TEMPERATURES.items():
    for part in ("classifier", "lung_segmenter", "gate"):
        case(f"temperature-{kind}-{part}", put(f"{part}/config.json", "temperature", value=value))
STEPS = [{"name": "close", "radius": 0.1}] * 1000
case("steps-post", put("pipeline.json", "postprocess", value=STEPS))
case("steps-post-disc", put("pipeline.json", "postprocess", value=[{"name": "close", "radius": 1.0}]))
case("steps-post-unknown", put("pipeline.json", "postprocess", value=["os.system"]))
case("steps-pre", put("classifier/config.json", "preprocess", "steps", value=["equalize"] * 1000))
case("steps-pre-range", put("classifier/config.json", "preprocess", "steps", value=[{"name": "median", "size": 10**6}]))
case(
    "steps-pre-tiny",
    put("classifier/config.json", "preprocess", "steps", value=[{"name": "sharpen", "radius": 1e-300}]),
)
case("network-wide", put("lung_segmenter/config.json", "network_args", value={"width": 10**6, "depth": 2}))
case("network-deep", put("lung_segmenter/config.json", "network_args", value={"width": 8, "depth": 10**5}))
case("network-large", put("lung_segmenter/config.json", "network_args", value={"width": 4000, "depth": 2}))
case("network-histograms", put("classifier/config.json", "network_args", value={"cell": 2, "side": 20_000}))
case("network-other", put("classifier/config.json", "network", value="timm:vit_giant_patch14_224"))
case("network-hub", put("classifier/config.json", "network", value="timm:hf-hub:evil/model"))
case("network-long", put("classifier/config.json", "network", value="timm:" + "x" * 9000))
case("network-path", put("classifier/config.json", "network", value="../../evil.Model"))
for kind in ("pretrained", "checkpoint_path", "weights", "cache_dir"):
    case(f"network-{kind}", put("classifier/config.json", "network_args", kind, value="/etc/passwd"))
case("classes-many", put("lung_segmenter/config.json", "classes", value=[f"c{n}" for n in range(100_000)]))

# --- names and paths -----------------------------------------------------------------------------------------------

NAMES = {
    "parent": "/../../../precious",
    "absolute": "/var/precious",
    "windows": "..\\..\\precious",
    "zero": "a\0b",
    "newline": "lung\nfield",
    "escape": "\x1b]0;owned\x07",
    "hidden": ".lung",
    "dots": "..",
    "blank": "  ",
    "long": "x" * 300,
    "bidi": "gnp.\u202elung",
    "overlay": "overlay",
    "surrogate": "\ud800",
}
for kind, name in NAMES.items():
    case(f"mask-class-{kind}", put("lung_segmenter/config.json", "classes", value=["lung_field", name]))
    case(f"class-{kind}", put("classifier/config.json", "classes", value=["covid19", "normal", name]))
case("mask-class-case", put("lung_segmenter/config.json", "classes", value=["lung_field", "Lung_Field"]))
for kind, names in {
    "parent": ["../sound/classifier"],
    "twice": ["classifier", "classifier"],
    "unknown": ["classifier", "decoder"],
    "none": [],
}.items():
    case(f"components-{kind}", put("pipeline.json", "components", value=names))
for part in PARTS:
    case(f"part-missing-{part}", lambda folder, part=part: shutil.rmtree(folder / part))  # type: ignore[misc]
    case(f"part-file-{part}", instead(part, lambda path: path.write_text("x")))
    case(f"part-outside-{part}", instead(part, link_outside))
    case(f"part-of-another-{part}", instead(part, lambda path: void(shutil.copytree(path.with_name("golden"), path))))
case("part-loop", instead("classifier", lambda path: path.symlink_to(path.parent)))
case(
    "gate-classifies", lambda folder: void(shutil.copytree(folder / "classifier", folder / "gate", dirs_exist_ok=True))
)
case("card-fifo", instead("README.md", os.mkfifo))
case("card-zero", instead("README.md", lambda path: path.symlink_to("/dev/zero")))
case("card-secret", instead("README.md", lambda path: path.symlink_to("/etc/passwd")))
case("card-sparse", instead("README.md", sparse))

# --- weights -------------------------------------------------------------------------------------------------------

for part in PARTS:
    case(f"weights-missing-{part}", instead(f"{part}/model.safetensors", lambda path: None))
    case(f"weights-nan-{part}", weights(part, replaced(lambda tensor: torch.full_like(tensor, torch.nan))))
    case(f"weights-shape-{part}", weights(part, replaced(lambda tensor: tensor[:1].clone())))
case("weights-infinite", weights("classifier", replaced(lambda tensor: torch.full_like(tensor, -torch.inf))))
case("weights-double", weights("classifier", replaced(lambda tensor: torch.full_like(tensor.double(), 1e200))))
case("weights-whole", weights("classifier", replaced(lambda tensor: tensor.long())))
case("weights-bool", weights("classifier", replaced(lambda tensor: tensor.bool())))
case("weights-complex", weights("classifier", replaced(lambda tensor: tensor.to(torch.complex64))))
case("weights-key-missing", weights("classifier", lambda tensors: tensors.pop(first(tensors))))
case("weights-key-more", weights("classifier", lambda tensors: tensors.update(more=torch.ones(3))))
case("weights-none", weights("classifier", dict.clear))
case("weights-huge-numbers", weights("classifier", replaced(lambda tensor: torch.full_like(tensor, 3e38))))
case("weights-cut", raw_weights(lambda content: content[:-5]))
case("weights-cut-unsaid", raw_weights(lambda content: content[:-5], hashed=False))
case("weights-flipped", raw_weights(lambda content: content[:-1] + bytes([content[-1] ^ 1]), hashed=False))
case("weights-empty", raw_weights(lambda _: b""))
case("weights-header-long", raw_weights(lambda content: struct.pack("<Q", 2**62) + content[8:]))
case("weights-header-over", raw_weights(lambda content: struct.pack("<Q", len(content)) + content[8:]))
case("weights-header-text", raw_weights(lambda content: struct.pack("<Q", 8) + b"no json!" + content[16:]))
case("weights-header-deep", raw_weights(lambda _: struct.pack("<Q", 50_000) + b'{"a":' * 10_000))
case("weights-pickle", raw_weights(lambda _: pickle.dumps({"head": 1})))
case("weights-fifo", instead("classifier/model.safetensors", os.mkfifo))
case("weights-device", instead("classifier/model.safetensors", lambda path: path.symlink_to("/dev/urandom")))
case("weights-sparse", instead("classifier/model.safetensors", sparse))
case("weights-outside", instead("classifier/model.safetensors", link_outside))

# --- ensembles -----------------------------------------------------------------------------------------------------


def ensemble(**members: Any) -> Spoil:
    """Put an ensemble of copies of the classifier in its place; the config names what it is told to."""

    def spoil(folder: Path) -> None:
        part = folder / "classifier"
        config = json.loads((part / "config.json").read_text())
        shutil.copytree(part, folder / "single")
        shutil.rmtree(part)
        for name in ("a", "b"):
            shutil.copytree(folder / "single", part / "members" / name)
        shutil.rmtree(folder / "single")
        data = {"format_version": 1, "task": "classification", "classes": config["classes"], "mode": "multiclass"}
        (part / "config.json").write_text(json.dumps({**data, "members": members or {"a": 1.0, "b": 1.0}}))

    return spoil


case("ensemble-parent", ensemble(**{"a": 1.0, "../../gate": 1.0}))
case("ensemble-missing", ensemble(a=1.0, c=1.0))
case("ensemble-weight", ensemble(a=5e-324))
case("ensemble-weight-text", ensemble(a="1"))
case("ensemble-case", ensemble(a=1.0, A=1.0))


def link_member(folder: Path) -> None:
    ensemble()(folder)
    instead("classifier/members/b", lambda path: path.symlink_to(folder.with_name("sound") / "classifier"))(folder)


case("ensemble-outside", link_member)
