"""A picture, of a file or in memory, as grey: what its numbers mean, and how many bits they really hold."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from covidcxr.errors import ConfigError, ImageReadError, UnsupportedFormatError
from covidcxr.io.codestream import caught_stderr, ends_grey, jpeg_is_cut

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "array_to_pixels",
    "check_bits",
    "decode_picture",
    "held_bits",
    "held_bits_in_words",
    "is_a",
    "is_single_image",
    "is_white_zero",
    "loaded_picture",
    "open_picture",
    "picture_to_pixels",
    "unit_scale",
]

Grey: TypeAlias = Float[np.ndarray, "height width"]
Pixels: TypeAlias = UInt8[np.ndarray, "height width"] | Grey
File: TypeAlias = BufferedReader | BytesIO
Numbers: TypeAlias = Shaped[np.ndarray, "..."]

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_PHOTOMETRIC, _BITS_PER_SAMPLE, _COLOR_MAP = 262, 258, 320  # TIFF tags
_PILLOW = {  # first bytes of a file -> the Pillow plug-in that reads it
    b"\x89PNG\r\n\x1a\n": "Png",
    b"\xff\xd8\xff": "Jpeg",
    b"II*\0": "Tiff",
    b"MM\0*": "Tiff",
    b"II+\0": "Tiff",
    b"MM\0+": "Tiff",
    b"BM": "Bmp",
    b"RIFF": "WebP",
}
_FOREIGN = {  # first bytes of files that often lie where an image should
    b"<": "text (HTML or XML), as servers send in place of what they do not have. Download it again",
    b"version https://git-lfs": "a Git LFS pointer. Fetch the image itself with `git lfs pull`",
    b"%PDF": "a PDF. Export the image from it as PNG",
    b"%!PS": "PostScript. Export the image from it as PNG",
    b"GIF8": "a GIF. Save it as PNG",
    b"8BPS": "a Photoshop file. Save it as PNG",
    b"PK\x03\x04": "a ZIP archive. Unpack it first",
    b"\x1f\x8b": "packed with gzip. Unpack it first; volumes (.nii.gz) are no images",
}
_LIKELY_BITS = (8, 10, 12, 14)
_RED_GREEN_BLUE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def is_single_image(images: object) -> bool:
    """Return whether an argument is one image, not a collection of images.

    Args:
        images: Any object.

    Returns:
        True for a path, bytes, an open file, a PIL image, a DICOM data set, and an array or tensor of at most three
        axes.
    """
    kinds = (("numpy", "ndarray"), ("PIL.Image", "Image"), ("torch", "Tensor"), ("pydicom", "Dataset"))
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "read"):
        return True
    if any(is_a(images, *kind) for kind in kinds):
        return getattr(images, "ndim", 0) < 4  # a batch [images, 1, height, width] is a collection
    return False


def is_a(image: object, module: str, kind: str) -> bool:
    """Say whether an object is of a class, without importing that class.

    Args:
        image: Any object.
        module: The module of the class.
        kind: Its name.

    Returns:
        False where the module was not imported: its class cannot have made the object.
    """
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(image, getattr(loaded, kind))


def check_bits(bits: int | None) -> None:
    """Raise an error for a number of bits that no image has.

    Args:
        bits: 8 to 16, or None.

    Raises:
        ConfigError: If it is anything else.
    """
    if bits is not None and (isinstance(bits, bool) or bits not in range(8, 17)):
        raise ConfigError(f"bits must be 8 to 16, or null where the type of the numbers tells; it is {bits!r}.")


def unit_scale(pixels: Pixels) -> Grey:
    """Bring a grey image to [0, 1].

    Args:
        pixels: 8 bits, or in [0, 1] already.

    Returns:
        Float32 in [0, 1]; floats come back as they are.
    """
    return np.divide(pixels, 255, dtype=np.float32) if pixels.dtype == np.uint8 else pixels


def picture_to_pixels(image: PIL.Image.Image, name: str, bits: int | None = None) -> Pixels:
    """Bring a decoded picture to grey.

    Args:
        image: A picture that `loaded_picture` gave.
        name: What to call it in messages.
        bits: Bits of the numbers where their type does not tell; see `read_image`.

    Returns:
        0 = black; 8 bits where the picture has no more and is not transparent, else float32 in [0, 1].

    Raises:
        ImageReadError: If its numbers are of an unknown scale.
    """
    if image.mode[0] in "IF":
        return _deep_to_grey(image, name, bits)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return np.asarray(unit_scale(np.asarray(image.convert("L"))) * unit_scale(np.asarray(image.getchannel("A"))))
    return np.array(image if image.mode == "L" else image.convert("L"))


def open_picture(file: File, head: bytes, name: str) -> PIL.Image.Image:
    """Open a picture file without decoding it.

    Args:
        file: The file.
        head: Its first bytes, which tell its format.
        name: What to call it in messages.

    Returns:
        The picture, of which only the header was read.

    Raises:
        ImageReadError: If it is empty, or known to be something else.
        UnsupportedFormatError: If its format is unknown.
    """
    # Not by `Image.open`: it warns about size through the process-wide warning filters.
    for start, kind in _PILLOW.items():
        if head.startswith(start):
            file.seek(0)
            plugin = getattr(import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")
            return cast("PIL.Image.Image", plugin(file))
    if not head:
        raise ImageReadError(f"{name} is empty. Copy or download it again.")
    for start, kind in _FOREIGN.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise ImageReadError(f"{name} is no image but {kind}.")
    raise UnsupportedFormatError(
        f"{name} has an unsupported file format (it starts with {head[:8]!r}). Save it as PNG, JPEG, TIFF, BMP, "
        f"WebP or DICOM."
    )


def decode_picture(
    picture: PIL.Image.Image, file: File, name: str, enough: tuple[int, int] | None = None
) -> PIL.Image.Image:
    """Decode a picture of a file, upright.

    Args:
        picture: What `open_picture` gave; of bearable size.
        file: The file.
        name: What to call it in messages.
        enough: Height and width that it will be brought to; see `read_pixels`.

    Returns:
        The decoded picture, or a turned copy.

    Raises:
        ImageReadError: If it is cut, damaged, or there are several pictures in it.
    """
    if enough and picture.format == "JPEG":
        _decode_small(picture, enough)
    is_deep_colour = picture.mode[0] in "RL" and ";16" in str(getattr(picture, "tile", "")[:1])
    by_libtiff = picture.format == "TIFF" and picture.info.get("compression") != "raw"
    listening: AbstractContextManager[list[str]] = caught_stderr() if by_libtiff else nullcontext([])
    with listening as messages:
        upright = loaded_picture(picture, name)
    if messages:
        raise ImageReadError(f"{name} is damaged ({messages[0].rstrip('.')}). Copy or download it again.")
    if is_deep_colour and np.asarray(upright.convert("L")).max() < 64:  # Pillow keeps the upper 8 bits alone
        raise ImageReadError(
            f"{name} has 16 bits a colour and is nearly black. Save it as 16-bit grey and, if it holds 12, "
            f"read it with bits=12."
        )
    if picture.format == "JPEG":
        corner = picture.crop((picture.width - 1, picture.height - 1, picture.width, picture.height))
        file.seek(0)
        if (picture.info.get("progressive") or ends_grey(np.asarray(corner))) and jpeg_is_cut(file.read()):
            raise ImageReadError(f"{name} is truncated: its data end before its last row. Copy or download it again.")
    return upright


def _decode_small(picture: PIL.Image.Image, enough: tuple[int, int]) -> None:
    """Let a JPEG be decoded at a part of its size: one of whole pixels, three times as large as enough."""
    turned = picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    height, width = (3 * side for side in (enough[::-1] if turned else enough))
    part = next((n for n in (8, 4, 2) if picture.height >= n * height and picture.width >= n * width), 1)
    while picture.height % part or picture.width % part:
        part //= 2
    if part > 1:
        picture.draft("L" if picture.mode == "RGB" else picture.mode, (picture.width // part, picture.height // part))


def loaded_picture(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Decode a picture and turn it upright.

    Args:
        image: One that was opened; of bearable size.
        name: What to call it in messages.

    Returns:
        The same picture, or a turned copy.

    Raises:
        ImageReadError: If there are several pictures in it.
    """
    from PIL import ImageOps

    # What phones append to a JPEG (MPO) are previews and brightness maps of the same picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageReadError(f"{name} holds several pictures. Save the image alone.")
    image.load()
    colors = getattr(image, "tag_v2", {}).get(_COLOR_MAP)
    if image.mode == "P" and colors and max(colors) < 256:  # some write 8 bits where TIFF has 16: Pillow makes it black
        image.putpalette(np.array(colors, np.uint8).reshape(3, -1).T.tobytes())
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def is_white_zero(image: PIL.Image.Image) -> bool:
    """Return whether 0 is white in a picture.

    Args:
        image: Any picture.

    Returns:
        True for TIFF files that say so.
    """
    return bool(getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0)


def _deep_to_grey(image: PIL.Image.Image, name: str, bits: int | None) -> Grey:
    """Grey of more than 8 bits. Pillow's own conversion to 8 bits would clip it at 255."""
    pixels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        pixels = np.divide(pixels, 4095, dtype=np.float32)
    grey = unit_scale(array_to_pixels(pixels, name, bits))
    if is_white_zero(image):  # Pillow inverts only up to 8 bits
        grey = 1 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[np.asarray(image) == key] = 0
    return grey


def array_to_pixels(array: Numbers, name: str, bits: int | None = None) -> Pixels:
    """Bring an array to grey.

    Args:
        array: Bool, uint8, uint16 or floats in [0, 1], or with `bits` any numbers from 0 to 2**bits - 1; axes are
            [height, width] or three with channels: last if that axis has length 1, 3 or 4 (RGBA), else first if that
            one has length 1 or 3.
        name: What to call it in messages.
        bits: Bits of the numbers where their type does not tell; see `read_image`.

    Returns:
        A new array [height, width], 0 = black: 8 bits of 8 bits, else float32 in [0, 1].

    Raises:
        ImageReadError: If it is no image, or its numbers are of an unknown scale.
    """
    shape = list(array.shape)
    if array.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ImageReadError(
            f"{name} has shape {shape}. Give one image: [height, width], [height, width, 1, 3 or 4] or "
            f"[1 or 3, height, width]; of a batch, one at a time."
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.dtype == np.uint8:
        from PIL import Image

        return picture_to_pixels(Image.fromarray(np.ascontiguousarray(array)), name)  # rounds as it does for a file
    if array.dtype == np.uint8:
        return array.copy()
    array = _unit_scaled(array, name, bits)
    if array.ndim == 3:
        alpha = array[..., 3] if array.shape[-1] == 4 else 1
        array = (array[..., :3] @ _RED_GREEN_BLUE * alpha).clip(0, 1)
    return array


def held_bits(grey: Grey) -> int | None:
    """Return how many bits a 16-bit image really holds, where it looks like fewer: converted from DICOM, most have 12.

    Args:
        grey: What `read_image` made of it, without `bits`.

    Returns:
        8, 10, 12 or 14 of a 16-bit image whose brightest value needs no more; None of any other image.
    """
    high = float(grey.max())
    if not 0 < high * 65535 < 2 ** _LIKELY_BITS[-1] - 0.5:
        return None
    values = grey * np.float32(65535)
    whole = np.rint(values)
    if np.abs(values - whole).max() > 0.02 or not (whole % 257).any():  # floats or colours; 8 bits
        return None
    return next(bits for bits in _LIKELY_BITS if round(high * 65535) < 2**bits)


def held_bits_in_words(bits: int) -> str:
    """Return the sentence for an image that holds fewer bits than 16.

    Args:
        bits: What `held_bits` returned.

    Returns:
        What is seen, and the ways to read such an image right.
    """
    return (
        f"16 bits a pixel, of which only {bits} seem to be used, so it looks black. If so, read it with bits={bits}: "
        f"`read_image(path, bits={bits})`, `bits: {bits}` of a data set, `covidcxr predict --bits {bits}`."
    )


def _unit_scaled(array: Numbers, name: str, bits: int | None) -> Numbers:
    """Bring white to 1, by the type of the numbers or by `bits`: a dark image must not be taken for another scale."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and (size == 1 or (size == 2 and bits is None)):
        return cast(Numbers, np.divide(array, 2 ** (8 * size) - 1, dtype=np.float32))
    if kind != "f" and (kind not in "iu" or bits is None):
        raise ImageReadError(
            f"{name} holds {array.dtype}, whose white is unknown. Give uint8 (white = 255), uint16 (white = 65535) "
            f"or floats in [0, 1], or read it with `bits` (12: white = 4095)."
        )
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageReadError(f"{name} holds NaN or infinite values. Replace them first.")
    if bits is not None and (kind != "f" or high > 1 + 1e-6):
        white = 2**bits - 1
        if low < 0 or high > white:
            raise ImageReadError(
                f"{name} holds values from {low:g} to {high:g}, not from 0 to {white} as bits={bits} says. "
                f"{f'Read it with bits={int(high).bit_length()}' if 0 <= low <= high <= 65535 else 'Rescale it first'}."
            )
        return cast(Numbers, np.divide(array, white, dtype=np.float32))
    if low < -1e-6 or high > 1 + 1e-6:
        raise ImageReadError(f"{name} holds values from {low:g} to {high:g}, not in [0, 1]. {_range_cure(low, high)}")
    return array.astype(np.float32).clip(0, 1)


def _range_cure(low: float, high: float) -> str:
    if low >= 0 and high <= 65535:
        return (
            "Divide by 255, or read it with bits=8."
            if high <= 255
            else "Divide by 65535 (by 4095 if it has 12 bits), or read it with bits=16 (bits=12)."
        )
    if low >= -1 and high <= 1:
        return "Give (image + 1) / 2."
    if -1024 <= low < -10 and high <= 1024:
        return "TorchXRayVision scales to [-1024, 1024]: give (image + 1024) / 2048."
    return "Give it before mean and standard deviation are taken out, scaled so that black is 0 and white is 1."
