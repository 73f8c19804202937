"""From a source to a folder, and files in and out: strictly, whole or not at all, and never unpickled."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import pickle
import stat
import struct
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from covidcxr.errors import ConfigError, NameClashError, PretrainedError
from covidcxr.io import pretrained


class Network(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 2)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Network, Path, str]:
    """A network, the file of its weights, and that file's SHA-256."""
    network = Network()
    path = tmp_path / "model.safetensors"
    return network, path, pretrained.save_weights(network, path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(path: Path, message: str, *, digest: str | None = None) -> None:
    """Loading must fail with this message and leave the network as it was."""
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(PretrainedError, match=message) as caught:
        pretrained.load_weights(network, path, digest or sha256(path))
    assert str(path) in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- sources -------------------------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.fetch(tmp_path) == tmp_path
    assert pretrained.fetch(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pretrained.fetch("owner/name") == Path("owner/name")  # a folder wins over a repository


def test_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_bundled_folder", lambda: tmp_path / "pretrained")
    assert pretrained.bundled() == ()
    for name in ("mini", "large", "unfinished"):
        (tmp_path / "pretrained" / name).mkdir(parents=True)
    for name in ("mini", "large"):
        (tmp_path / "pretrained" / name / "pipeline.json").write_text("{}")
    assert pretrained.bundled() == ("large", "mini")
    assert pretrained.fetch("mini") == tmp_path / "pretrained" / "mini"
    with pytest.raises(PretrainedError, match=r"large, mini.*Did you mean 'mini'\?"):
        pretrained.fetch("minni")


@pytest.mark.parametrize(
    "source", ["nothing", "a/b/c", "./nothing", "/nothing/here", "~/models", "a\\b", "owner/", "x\0y", "", "n" * 5000]
)
def test_neither_folder_nor_bundled_nor_repository(source: str) -> None:
    with pytest.raises(PretrainedError, match="no folder"):
        pretrained.fetch(source)


def publish(site: Path, package: str, points: dict[str, str]) -> Path:
    """Install a package that publishes weights; to import it would fail."""
    folder = site / package / "weights" / "chest"
    folder.mkdir(parents=True)
    (site / package / "__init__.py").write_text("raise RuntimeError('imported')")
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.3\nName: {package}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (metadata / "entry_points.txt").write_text(f"[covidcxr.pretrained]\n{lines}\n")
    return folder


def test_weights_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish(tmp_path, "ward_weights", {"ward": "ward_weights.weights.chest", "mini": "ward_weights.weights"})
    monkeypatch.syspath_prepend(tmp_path)
    assert pretrained.available() == ("mini", "ward")
    assert pretrained.fetch("ward") == folder  # and the package was not imported
    assert pretrained.fetch("mini").parent.name == "pretrained"  # a package cannot replace what is bundled
    with pytest.raises(PretrainedError, match=r"installed weights \(mini, ward\).*Did you mean 'ward'\?"):
        pretrained.fetch("wardd")


@pytest.mark.parametrize(
    "value",
    ["ward_weights.nothing", "nothing.weights", "ward_weights.weights:chest", "ward_weights...", "a-b", "os.path"],
)
def test_weights_of_a_package_that_are_not_there(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, "ward_weights", {"ward": value})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PretrainedError, match=r"'ward' of ward_weights are not there.*Repair or uninstall"):
        pretrained.fetch("ward")


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in "ab":
        publish(tmp_path / number, f"ward_{number}", {"ward": f"ward_{number}.weights"})
        monkeypatch.syspath_prepend(tmp_path / number)
    with pytest.raises(NameClashError, match=r"Two installed packages publish weights 'ward'"):
        pretrained.fetch("ward")


def test_base_says_what_to_install() -> None:
    if "base" in pretrained.available():
        assert (pretrained.fetch("base") / "pipeline.json").is_file()
        return
    with pytest.raises(PretrainedError, match=r"pip install covidcxr-base$"):
        pretrained.fetch("base")


@pytest.mark.parametrize("local_files_only", [True, False])
def test_offline_is_told_at_once(local_files_only: bool, tmp_path: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    start = time.perf_counter()
    with pytest.raises(PretrainedError, match=r"'owner/name' is no folder here.*could not be had.*copy the model"):
        pretrained.fetch("owner/name", cache_dir=tmp_path, local_files_only=local_files_only)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("source", ["a/b c", "owner/name..", "-a/b"])
def test_impossible_repository_names(source: str, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"no valid Hub repository name"):
        pretrained.fetch(source, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "The Hub has no 'owner/name'.*hf auth login"),
        (RevisionNotFoundError, "The Hub has no revision 'v9' of 'owner/name'"),
        (TimeoutError, "Check the connection"),
        (ConnectionError, "Check the connection"),
    ],
)
def test_errors_of_the_hub(error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error.__new__(error)  # the Hub's own want a response to be built from

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(PretrainedError, match=message):
        pretrained.fetch("owner/name", revision="v9")


def test_what_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert (
        pretrained.fetch("owner/name", revision="v1", cache_dir=tmp_path / "cache", local_files_only=True) == tmp_path
    )
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("owner/name", "v1", True)
    assert asked["cache_dir"] == tmp_path / "cache"
    from huggingface_hub.utils import filter_repo_objects

    offered = ["pipeline.json", "classifier/model.safetensors", "golden/film.png", "README.md"]
    unwanted = ["model.bin", "classifier/weights.pth", "code.py", "archive.pkl"]
    assert list(filter_repo_objects([*offered, *unwanted], allow_patterns=asked["allow_patterns"])) == offered


# --- JSON ----------------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    pretrained.write_json(tmp_path / "deep" / "x.json", data)
    assert pretrained.read_json(tmp_path / "deep" / "x.json") == data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[1, 2]", "must hold one JSON object, not a list"),
        (b"null", "must hold one JSON object, not a NoneType"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    ],
    ids=["empty", "cut off", "no text", "list", "null", "nested too deep", "number too long"],
)
def test_broken_json(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        pretrained.read_json(path)
    assert str(path) in str(caught.value)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"config\.json is missing: this folder is not a complete saved model"):
        pretrained.read_json(tmp_path / "config.json")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    pretrained.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        pretrained.write_json(tmp_path / "x.json", {"a": object()})
    assert names_in(tmp_path) == ["x.json"]
    assert pretrained.read_json(tmp_path / "x.json") == {"a": 1}


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_come_back_bit_for_bit(saved: tuple[Network, Path, str]) -> None:
    network, path, digest = saved
    assert digest == sha256(path)
    other = Network()
    assert not torch.equal(other.head.weight, network.head.weight)
    pretrained.load_weights(other, path, digest)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in other.state_dict().items())
    assert set(load_file(path)) == set(network.state_dict())


def test_layouts_in_memory_do_not_matter(tmp_path: Path) -> None:
    network = Network(8).to(memory_format=torch.channels_last)
    digest = pretrained.save_weights(network, tmp_path / "a.safetensors")
    assert digest == pretrained.save_weights(
        network.to(memory_format=torch.contiguous_format), tmp_path / "b.safetensors"
    )


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"model\.safetensors is missing"):
        pretrained.load_weights(Network(), tmp_path / "model.safetensors", "")


def test_truncated_weights(saved: tuple[Network, Path, str]) -> None:
    _, path, digest = saved
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 8, 3, 0):
        path.write_bytes(content[:length])
        refused(path, "truncated or was altered", digest=digest)
        refused(path, "no readable safetensors file")  # also where the digest was altered with it


@pytest.mark.parametrize("position", [0, 9, -1])
def test_one_byte_altered(saved: tuple[Network, Path, str], position: int) -> None:
    _, path, digest = saved
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    refused(path, "SHA-256 differs.*altered.*anew", digest=digest)


def test_tensors_that_do_not_fit(saved: tuple[Network, Path, str]) -> None:
    _, path, _ = saved
    tensors = load_file(path)
    weight = tensors["head.weight"]
    save_file({name: tensor for name, tensor in tensors.items() if name != "head.weight"}, path)
    refused(path, r"do not fit.*: missing head\.weight\.$")
    save_file({**tensors, "tail.weight": weight.clone()}, path)
    refused(path, r"do not fit.*: unexpected tail\.weight\.$")
    save_file({**tensors, "head.weight": torch.zeros(2, 4)}, path)
    refused(path, r"head\.weight has shape \(2, 4\), not \(2, 3\)\.$")
    save_file({**tensors, "head.weight": torch.zeros(6)}, path)
    refused(path, r"head\.weight has shape \(6,\), not \(2, 3\)")
    save_file({"x": torch.zeros(1)}, path)
    refused(path, r"missing body.*; missing .*; missing .*; and \d+ more\.$")


def test_numbers_of_another_kind_do_not_fit_but_half_precision_does(saved: tuple[Network, Path, str]) -> None:
    network, path, _ = saved
    tensors = load_file(path)
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, path)
    other = Network()
    pretrained.load_weights(other, path, sha256(path))
    assert other.head.weight.dtype == torch.float32
    torch.testing.assert_close(other.head.weight, network.head.weight, rtol=1e-3, atol=1e-3)
    save_file({**tensors, "head.weight": tensors["head.weight"].to(torch.int64)}, path)
    refused(path, r"head\.weight")


class Malice:
    """Unpickling this writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    victim, path = tmp_path / "executed", tmp_path / "model.safetensors"
    pickle.loads(pickle.dumps(Malice(victim)))
    assert victim.exists(), "the test's own weapon is blunt"
    victim.unlink()
    zipped = io.BytesIO()
    torch.save({"head.weight": Malice(victim)}, zipped)
    raw = pickle.dumps(Malice(victim))
    for content in (raw, zipped.getvalue(), struct.pack("<Q", len(raw)) + raw):
        path.write_bytes(content)
        refused(path, "no readable safetensors file")
    assert not victim.exists()


# --- files ---------------------------------------------------------------------------------------------------------


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    umask = os.umask(0o022)
    try:
        with pretrained.replace_file(path) as temporary:
            temporary.write_text("one")
            assert temporary.parent == path.parent
            assert not path.exists()
    finally:
        os.umask(umask)
    assert path.read_text() == "one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replace_file_leaves_the_old_one_on_failure(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with pretrained.replace_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


def test_weights_that_cannot_be_written_leave_the_old_file(
    saved: tuple[Network, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, digest = saved

    def fail(tensors: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        pretrained.save_weights(Network(), path)
    assert sha256(path) == digest
    assert names_in(path.parent) == [path.name]


def test_shipped_names_are_complete() -> None:
    for name in pretrained.bundled():
        assert json.loads((pretrained.fetch(name) / "pipeline.json").read_text(encoding="utf-8"))


def test_garbage_is_collected_again_after_loading() -> None:
    def fail() -> None:
        with pretrained.collection_paused(), pretrained.collection_paused():  # a pipeline loads its models
            assert not gc.isenabled()
            raise ConfigError("a wrong value")

    assert gc.isenabled()
    with pytest.raises(ConfigError):
        fail()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
