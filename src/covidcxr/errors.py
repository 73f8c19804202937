"""Errors that covidcxr raises on purpose.

    CovidCXRError
    ├── ImageReadError          an image or mask cannot be read; says which file and what to do
    │   ├── ImageTooLargeError      it has more pixels than are read
    │   └── UnsupportedFormatError  its file has no format that is read
    ├── DatasetError            a data set on disk is missing, incomplete or contradicts itself
    ├── ConfigError             a setting, key or value is wrong
    │   └── UnknownNameError    no such network, loss, data set, ...; says the nearest known name
    ├── NameClashError          two things were registered under one name
    ├── PretrainedError         a saved model is missing, corrupted, altered or too new
    └── ProcessLostError        another process of a training has ended

Each message says what happened, where, and what to do about it. Wrong *input* raises one of these;
a bug in covidcxr raises whatever Python raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial

from covidcxr import aliases

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "CovidCXRError",
    "ImageReadError",
    "ImageTooLargeError",
    "UnsupportedFormatError",
    "DatasetError",
    "ConfigError",
    "UnknownNameError",
    "NameClashError",
    "PretrainedError",
    "ProcessLostError",
    "did_you_mean",
    "nearest_argument",
    "RequestError",
]


class CovidCXRError(Exception):
    """Base of all errors of this library.

    Example:
        ```python
        from covidcxr import CovidCXRError, read_image

        try:
            read_image("missing.png")
        except CovidCXRError as error:
            message = str(error)
        assert "missing.png" in message
        ```
    """


class ImageReadError(CovidCXRError, ValueError):
    """An image or a mask cannot be read.

    Example:
        ```python
        from covidcxr import read_image
        from covidcxr.errors import ImageReadError

        try:
            read_image(b"%PDF-1.7")
        except ImageReadError as error:
            message = str(error)
        assert "PDF" in message
        ```
    """


class ImageTooLargeError(ImageReadError):
    """An image has more pixels than are read.

    Example:
        ```python
        from covidcxr import read_image
        from covidcxr.errors import ImageReadError, ImageTooLargeError

        try:
            read_image("huge.tif")
        except ImageReadError as error:
            assert not isinstance(error, ImageTooLargeError)  # it is missing
        ```
    """


class UnsupportedFormatError(ImageReadError):
    """A file has no format that is read.

    Example:
        ```python
        from covidcxr import read_image
        from covidcxr.errors import UnsupportedFormatError

        try:
            read_image(b"no image")
        except UnsupportedFormatError as error:
            print(error)
        ```
    """


class DatasetError(CovidCXRError, ValueError):
    """A data set on disk is missing, incomplete or contradicts itself.

    Example:
        ```python
        from covidcxr import FolderDataModule
        from covidcxr.errors import DatasetError

        try:
            FolderDataModule("no_such_folder").setup("fit")
        except DatasetError as error:
            message = str(error)
        assert "no_such_folder" in message
        ```
    """


class ConfigError(CovidCXRError, ValueError):
    """A setting is unknown, of the wrong type or out of range.

    Example:
        ```python
        from covidcxr import PreprocessConfig
        from covidcxr.errors import ConfigError

        try:
            PreprocessConfig(channels=2)
        except ConfigError as error:
            message = str(error)
        assert message == "channels must be 1 or 3, not 2."
        ```
    """


class UnknownNameError(ConfigError):
    """A name is in no registry; the message offers the nearest known one.

    Example:
        ```python
        from covidcxr.errors import UnknownNameError
        from covidcxr.losses import build_segmentation_loss

        try:
            build_segmentation_loss("dise")
        except UnknownNameError as error:
            message = str(error)
        assert message.endswith("Did you mean 'dice'?")
        ```
    """


class NameClashError(CovidCXRError, ValueError):
    """Two things were registered under one name.

    Example:
        ```python
        from torch import nn

        from covidcxr.errors import NameClashError
        from covidcxr.registry import SEGMENTATION_LOSSES

        try:
            SEGMENTATION_LOSSES.register("dice")(nn.BCEWithLogitsLoss)
        except NameClashError as error:
            message = str(error)
        assert "DiceLoss" in message
        ```
    """


class PretrainedError(CovidCXRError, OSError):
    """A saved model cannot be found, or is corrupted, altered or written by a newer release.

    Example:
        ```python
        from covidcxr import Pipeline
        from covidcxr.errors import PretrainedError

        try:
            Pipeline.from_pretrained("mimi")
        except PretrainedError as error:
            message = str(error)
        assert message.endswith("Did you mean 'mini'?")
        ```
    """


class ProcessLostError(CovidCXRError, ConnectionError):
    """Another process of the same training has ended, or does not answer.

    Example:
        ```python
        from covidcxr.errors import CovidCXRError, ProcessLostError

        assert issubclass(ProcessLostError, CovidCXRError)
        ```
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Finish an error message about an unknown name.

    Args:
        name: What the user wrote.
        known: All names that would have been right.

    Returns:
        `"Did you mean 'dice'?"` when something is near, else the list of all known names.
    """
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(options) or 'none'}."


def nearest_argument(error: Exception, known: Iterable[str]) -> str:
    """Finish an error message about an unknown keyword argument.

    Args:
        error: The TypeError that Python raised.
        known: The arguments that the function has.

    Returns:
        `" Did you mean 'drop_rate'?"`, or `""` where nothing is near or something else is wrong.
    """
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    near = get_close_matches(match[1], sorted(known), n=1) if match else []
    return f" Did you mean {near[0]!r}?" if near else ""


class RequestError(CovidCXRError):
    """A request that is not fulfilled.

    Args:
        status: HTTP status, from 400 up.
        message: What is wrong and what to do, in one sentence or two.
        retry_after: Seconds after which another try makes sense; None = never.

    Example:
        ```python
        from covidcxr.errors import RequestError

        assert RequestError(503, "The server is busy.", retry_after=1).headers == {"Retry-After": "1"}
        ```
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
