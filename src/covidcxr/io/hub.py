"""The Hugging Face Hub: weights from there and to there, with errors of ours, and the head of a model card."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covidcxr.errors import ConfigError, ImageReadError, PretrainedError
from covidcxr.types import TaskName
from covidcxr.utils.plain import user_path

__all__ = ["download", "front_matter", "hub_errors", "upload", "full_url", "is_url", "list_remote", "read_remote"]

_FILES = ("*.json", "*.safetensors", "*.md", "*.png")

_TAGS = ["chest-x-ray", "covid-19", "medical-imaging", "radiology", "research-only"]


def front_matter(
    tasks: Sequence[TaskName],
    license: str | None = None,  # noqa: A002 - the Hub's word
    *,
    name: str = "",
    dataset: str = "",
    scores: Mapping[str, float] | None = None,
) -> str:
    """Write the head of a model card, which the Hub shows and searches: YAML between two lines of dashes.

    Args:
        tasks: What the models do.
        license: The Hub's name of the weights' licence ("cc-by-4.0", "apache-2.0", "other"); None = not said.
        name: Of the model; needed with `scores`.
        dataset: What the scores were measured on; needed with `scores`.
        scores: By name.

    Returns:
        Licence, library, task and tags, and the scores with their data set.
    """
    from huggingface_hub import EvalResult, ModelCardData

    kind = "image-segmentation" if "segmentation" in tasks else "image-classification"
    tags = [*_TAGS, *(f"image-{task}" for task in dict.fromkeys(tasks))]
    results = [
        EvalResult(kind, dataset, dataset, metric, round(value, 4), metric_name=metric.replace("_", " "))
        for metric, value in (scores or {}).items()
    ]
    card = ModelCardData(
        license=license,
        library_name="covidcxr",
        pipeline_tag=kind,
        tags=tags,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def upload(
    save: Callable[[Path], object], repo_id: str, *, private: bool = False, token: str | None = None, **settings: Any
) -> str:
    """Save something into a folder and upload it to the Hub.

    Args:
        save: Writes the files into the folder that it is given.
        repo_id: "owner/name"; made if need be.
        private: Whether a new repository is private.
        token: Access token; None = the one of `hf auth login`.
        **settings: Further arguments of huggingface_hub's `upload_folder`.

    Returns:
        The address of the commit.

    Raises:
        PretrainedError: If the Hub cannot be reached or refuses the upload.
        ConfigError: If the name or an argument is wrong, or nothing can be saved.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        with hub_errors(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **settings))


def download(name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, local_only: bool) -> Path:
    """Download a repository of weights, or find it in the cache.

    Args:
        name: The repository, "owner/name".
        revision: Branch, tag or commit.
        cache_dir: Where downloads are kept; None = the Hub's own cache.
        local_only: Never use the network.

    Returns:
        The local folder.

    Raises:
        PretrainedError: If it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else user_path(cache_dir),
            local_files_only=local_only,
            allow_patterns=[*_FILES, *(f"*/{pattern}" for pattern in _FILES)],
        )
    except HFValidationError as error:
        raise PretrainedError(f"{name!r} is no folder here and no valid Hub repository name.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision!r} of {name!r}" if isinstance(error, RevisionNotFoundError) else f"{name!r}"
        raise PretrainedError(
            f"The Hub has no {what}, or it is private: check the spelling, or log in with: hf auth login"
        ) from error
    except OSError as error:  # offline, not in the cache, disk full: all are OSError
        raise PretrainedError(
            f"{name!r} is no folder here, and it could not be had from the Hub ({type(error).__name__}). Check the "
            f"connection, or copy the model's folder to this machine and give its path."
        ) from error
    return Path(folder)


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn what the Hub's client raises while it uploads into errors of ours.

    Args:
        repository: Its name.

    Yields:
        Nothing.

    Raises:
        PretrainedError: If the Hub cannot be reached, or refuses.
        ConfigError: If the name or an argument is wrong.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is no valid name of a Hub repository: it is owner/name.") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The upload to {repository!r} refused its arguments: {_line(error)}") from error
    except HfHubHTTPError as error:
        raise PretrainedError(
            f"The Hub refused the upload to {repository!r}: {_line(error)} Check the name and your rights, or log in "
            f"with: hf auth login"
        ) from error
    except Exception as error:  # offline, no route, a certificate: each client has errors of its own
        raise PretrainedError(
            f"{repository!r} could not be uploaded to the Hub ({type(error).__name__}: {_line(error)}). Check the "
            f"connection and your token, or save the model to a folder and upload that."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive


def is_url(path: object) -> bool:
    """Tell a URL from a path of this machine.

    Args:
        path: What a user named.

    Returns:
        Whether it is text that begins with a protocol, as `s3://` or `https://`.

    Example:
        ```python
        from covidcxr.io.hub import is_url

        assert is_url("s3://bucket/image.png") and not is_url("images/1.png")
        ```
    """
    return isinstance(path, str) and _URL.match(path) is not None


def full_url(url: str) -> str:
    """Return a URL as the listing of its store writes it.

    Args:
        url: As fsspec takes it.

    Returns:
        The URL, without a slash at its end.

    Raises:
        ConfigError: If a library for this protocol is missing.
    """
    with _explained(url):
        system, place = _system(url)
        return str(system.unstrip_protocol(place)).rstrip("/")


def list_remote(url: str) -> Iterator[str]:
    """List what a URL means: a file as it is, a folder (prefix) with all files below it.

    A folder's entries are held at a time, not those of the whole tree.

    Args:
        url: As fsspec takes it; keys come from the environment, as the store's own library finds them.

    Yields:
        A URL a file, in no order.

    Raises:
        ConfigError: If a library for this protocol is missing, or the store cannot be listed.
    """
    with _explained(url):
        system, place = _system(url)
        if not system.isdir(place):
            yield url
            return
        for _, _, files in system.walk(place, detail=True):
            for facts in files.values():
                yield system.unstrip_protocol(facts["name"])


def read_remote(url: str) -> bytes:
    """Read a file.

    Args:
        url: As fsspec takes it.

    Returns:
        Its content.

    Raises:
        ImageReadError: If it cannot be read.
    """
    try:
        system, place = _system(url)
        return bytes(system.cat_file(place))
    except Exception as error:  # every store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(f"{url!r} cannot be read: {reason.rstrip('.')}.") from error


def _system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ConfigError(f'{url} needs fsspec: pip install "covidcxr[remote]"') from error
    # A listing that is kept would hold a bucket of a million images in memory.
    system, place = url_to_fs(url, use_listings_cache=False)
    return system, str(place)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, GeneratorExit):
        raise
    except Exception as error:  # every store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{url} cannot be listed: {reason.rstrip('.')}.") from error
