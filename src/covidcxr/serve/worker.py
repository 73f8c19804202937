"""The process that decodes uploads: what comes from outside is opened here, with little memory and nothing to lose.

It reads orders from standard input and answers on standard output: a line of JSON, then the bytes that it announces.
`python -m covidcxr.serve.worker` is started by `covidcxr.serve.engine`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from covidcxr import aliases
from covidcxr.errors import ImageReadError, ImageTooLargeError, UnsupportedFormatError
from covidcxr.io.dicom import is_dicom, read_dicom

__getattr__ = partial(aliases.find, __name__)

__all__ = ["decode_image", "decode_mask", "main", "to_png"]

_THUMBNAIL = 160
_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")
_ORIENTATION = 0x0112
_PNG_ORIENTATION = (b"eXIf", b"exif", b"tiff:Orientation")
_FORMATS = "PNG, JPEG, TIFF, BMP, WebP or DICOM"
_SHORT_OF_MEMORY = "The file needs more memory than this server gives to one image. Send a smaller copy."


def decode_image(content: bytes, keep_identifiers: bool = False) -> tuple[dict[str, Any], list[bytes]]:
    """Decode an uploaded image.

    Args:
        content: The file.
        keep_identifiers: Whether to return who is on a DICOM image.

    Returns:
        `height`, `width`, `sha256` of the pixels, `notes` and `identifiers`; and the pixels (8-bit grey, row by row),
        the image and its thumbnail as PNG without any metadata.

    Raises:
        ImageReadError: If it cannot be read.
    """
    import cv2
    from PIL import Image

    from covidcxr.io.image import read_image
    from covidcxr.io.pixels import held_bits

    grey = read_image(content)
    pixels = np.asarray(cv2.convertScaleAbs(grey, alpha=255), np.uint8)
    notes, identifiers = _notes_of(content, keep_identifiers)
    if bits := held_bits(grey):
        notes.append(f"Only {bits} of its 16 bits a pixel seem to be used, so it looks black: export all its greys.")
    small = Image.fromarray(pixels)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
    height, width = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(pixels.data)
    facts = {"height": height, "width": width, "sha256": digest.hexdigest(), "notes": notes, "identifiers": identifiers}
    return facts, [pixels.tobytes(), to_png(pixels), to_png(np.asarray(small))]


def decode_mask(content: bytes, size: tuple[int, int]) -> tuple[dict[str, Any], list[bytes]]:
    """Decode a corrected mask; what is neither black nor white is refused, not guessed.

    Args:
        content: The file.
        size: Height and width of its image.

    Returns:
        Nothing to say; and the mask, 0 or 1 a pixel, row by row, and as PNG of 0 and 255.

    Raises:
        ImageReadError: If it cannot be read, is of another size, or is grey.
    """
    from covidcxr.io.image import read_image

    grey = read_image(content)
    if grey.shape != tuple(size):
        raise ImageReadError(
            f"The mask is {grey.shape[0]} x {grey.shape[1]} (height x width) and its image {size[0]} x {size[1]}."
        )
    if not np.logical_or(grey < 0.05, grey > 0.95).all():
        raise ImageReadError("The mask holds grey: a mask is 0 (outside) and 255 (inside). Send it as PNG.")
    mask = grey > 0.5
    return {}, [mask.tobytes(), to_png(mask.astype(np.uint8) * np.uint8(255))]


def to_png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """Pack pixels as PNG, quickly rather than small.

    Args:
        pixels: 8-bit grey.

    Returns:
        The PNG.
    """
    import cv2

    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV 4.11; before, all filters are tried, which takes twice as long
        settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
    return cv2.imencode(".png", pixels, settings)[1].tobytes()


def _notes_of(content: bytes, keep_identifiers: bool) -> tuple[list[str], dict[str, str]]:
    """Return what was done to the image on the way, and who is on it if that is asked for."""
    from PIL import Image

    if not is_dicom(content[:256]):
        with Image.open(io.BytesIO(content)) as picture:
            # Pillow decodes a PNG to see whether an orientation stands behind its pixels.
            known = picture.format != "PNG" or any(word in content for word in _PNG_ORIENTATION)
            turned = known and picture.getexif().get(_ORIENTATION, 1) != 1
        return (["Turned upright as the file's orientation says."] if turned else []), {}
    dataset = read_dicom(io.BytesIO(content), "The image", stop_before_pixels=True)
    notes = ["Inverted: the file is MONOCHROME1."] if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else []
    if dataset.get("BurnedInAnnotation") == "YES":
        notes.append("The file says that writing is burned into the image: it may name the patient.")
    kept = {name: str(dataset.get(name)) for name in _IDENTIFIERS if keep_identifiers and dataset.get(name)}
    return notes, kept


def main(orders: IO[bytes], answers: IO[bytes], memory: int, pixels: int) -> None:
    """Work through orders until there are no more.

    Args:
        orders: Lines of JSON with `kind` ("image" or "mask"), `bytes` and the arguments, each followed by the file.
        answers: Lines of JSON, each followed by the parts that it announces.
        memory: Bytes that this process may take.
        pixels: Height times width of an image, at most.
    """
    from covidcxr.io import image

    image.MAX_PIXELS = pixels
    _warm_up()
    _confine(memory)
    decoders: dict[str, Callable[..., tuple[dict[str, Any], list[bytes]]]] = {
        "image": decode_image,
        "mask": decode_mask,
    }
    while line := orders.readline():
        order = json.loads(line)
        content = orders.read(order.pop("bytes"))
        parts: list[bytes] = []
        try:
            facts, parts = decoders[order.pop("kind")](content, **order)
        except (ImageReadError, MemoryError) as error:
            facts = {"error": _explain(error, pixels)}
        answers.write(json.dumps(facts | {"parts": [len(part) for part in parts]}).encode() + b"\n")
        answers.writelines(parts)
        answers.flush()


def _explain(error: Exception, most_pixels: int) -> str:
    """Say to a reader of the page why a file was refused; messages of the library speak to programmers."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return _SHORT_OF_MEMORY
    if isinstance(error, ImageTooLargeError):
        return (
            f"The file holds more than {most_pixels / 1e6:g} megapixels, the most that this server takes. Send a "
            f"smaller copy, or ask who runs the server to raise the limit (--max-megapixels)."
        )
    if isinstance(error, UnsupportedFormatError):
        return f"The file has an unsupported file format. Save it as {_FORMATS}."
    if error.__cause__ is not None:
        return (
            "The file cannot be decoded: it is damaged, incomplete or of a rare kind, or something in it is too large. "
            "Export it again, or save it as PNG."
        )
    return str(error).replace("The given file content", "The file")


def _warm_up() -> None:
    """Load the decoders before the first image comes, and before memory is short."""
    import pydicom.pixels  # noqa: F401

    decode_image(to_png(np.zeros((8, 8), np.uint8)))


def _confine(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; those on size and pixels hold there as well
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file, so nothing that takes it over can
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    # Decoders in C print to file 1 now and then: only we keep the pipe that the server reads.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.stdin.buffer, pipe, int(sys.argv[1]), int(sys.argv[2]))
