"""Masks as they are stored: two levels in any clothes, and which of the two is set. `read_mask` states the rules."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from covidcxr.errors import ImageReadError
from covidcxr.io.pixels import is_white_zero, picture_to_pixels, unit_scale

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["encode_mask", "mask_of_grey", "mask_of_picture"]

Mask: TypeAlias = Bool[np.ndarray, "height width"]
Numbers: TypeAlias = Shaped[np.ndarray, "height width"]

_GREY = 25  # by how much red, green and blue of a grey may differ, of 255
_CURE = "Save masks as 8-bit grey: 0 = not set, 255 = set."
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def encode_mask(mask: Mask) -> bytes:
    """Return a mask as the content of a PNG file of 1 bit a pixel: several times as fast as Pillow and OpenCV do it.

    Args:
        mask: True inside the mask, which becomes white.

    Returns:
        The file.
    """
    bits = np.packbits(mask, axis=1)
    lines = np.zeros((len(bits), bits.shape[1] + 1), np.uint8)  # each begins with its filter: 0 = none
    lines[:, 1:] = bits
    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 1, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), 3), b"IEND": b""}
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def mask_of_picture(picture: PIL.Image.Image, name: str) -> Mask:
    """Read a decoded picture as a mask.

    Args:
        picture: Of any mode.
        name: What to call it in messages.

    Returns:
        A bool array [height, width].

    Raises:
        ImageReadError: If it does not have two levels of which one is set.
    """
    if picture.mode[0] in "IF":
        grey = _unit_range(np.asarray(picture), name)
        return mask_of_grey(1 - grey if is_white_zero(picture) else grey, name)
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        return mask_of_grey(unit_scale(picture_to_pixels(picture, name)), name)
    background = np.asarray(picture) == 0 if picture.mode == "P" else None
    if background is not None and background.all():
        return np.zeros(background.shape, bool)
    if picture.has_transparency_data:
        mask = _mask_of_transparent(np.asarray(picture.convert("RGBA")), name)
    else:
        mask = _mask_of_colours(np.asarray(picture.convert("RGB")), name)
    if background is not None and (mask & background).any():
        raise ImageReadError(
            f"The mask {name} has a palette, and its colour 0, which by custom is not set, looks as if it were: which "
            f"is set? {_CURE}"
        )
    return mask


def mask_of_grey(grey: Float[np.ndarray, "height width"], name: str) -> Mask:
    """Cut a grey picture of two levels, the brighter of which is set.

    Args:
        grey: In [0, 1].
        name: What to call it in messages.

    Returns:
        A bool array [height, width].

    Raises:
        ImageReadError: If it does not have two levels, or has one that is neither 0 nor 1 nor white.
    """
    low, high = float(grey.min()), float(grey.max())
    if low == high:
        if low not in (0, 1, *(float(np.float32(1) / np.float32(white)) for white in (255, 65535))):
            raise ImageReadError(f"The mask {name} is grey {low:.3f} everywhere: set or not set? {_CURE}")
        return np.full(grey.shape, low > 0)
    margin = 0.1 * (high - low)
    between = float(np.mean((grey > low + margin) & (grey < high - margin)))
    # Levels close together with others between them are no noise but class numbers (0, 1, 2).
    if between > 0.05 or (between > 0 and high - low < 0.125):
        raise _no_mask(name, between, f"{low:.3f}", f"{high:.3f}")
    mask: Mask = grey > (low + high) / 2
    return mask


def _no_mask(name: str, between: float, low: str, high: str) -> ImageReadError:
    return ImageReadError(
        f"{name} is no mask: {between:.1%} of its pixels are neither of its two levels {low} and {high}. "
        f"If it holds several classes, write one 0/255 mask a class; if it is an image, give its mask."
    )


def _unit_range(numbers: Numbers, name: str) -> Float[np.ndarray, "height width"]:
    """Bring whole numbers and floats, of which only the two levels count, to [0, 1]."""
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite([low, high]).all():
        raise ImageReadError(f"The mask {name} holds NaN or infinite values. {_CURE}")
    if low < 0:
        numbers, high = numbers - low, high - low
    is_short = numbers.dtype.kind == "u" and numbers.dtype.itemsize == 2
    white = 65535 if is_short else next((white for white in (1, 255, 65535) if high <= white), high)
    return np.asarray(np.divide(numbers, white, dtype=np.float32))


def _mask_of_transparent(colours: UInt8[np.ndarray, "height width 4"], name: str) -> Mask:
    """Alpha is the mask, unless what is opaque has two levels itself."""
    colours, alpha = colours[..., :3], colours[..., 3] / np.float32(255)
    opaque = alpha > alpha.max() / 2
    if not opaque.any():
        if np.ptp(colours, axis=(0, 1)).any():
            raise ImageReadError(f"The mask {name} is transparent everywhere, over colours that differ. {_CURE}")
        return np.zeros(alpha.shape, bool)
    if alpha.min() == alpha.max() or np.ptp(colours[opaque], axis=0).any():
        return _mask_of_colours(np.rint(colours * alpha[..., None]).astype(np.uint8), name)  # on black
    return mask_of_grey(alpha / alpha.max(), name)


def _mask_of_colours(colours: UInt8[np.ndarray, "height width 3"], name: str) -> Mask:
    """Two colours: the coloured one of a grey and a colour, else the brighter one."""
    if (colours.max(axis=-1) - colours.min(axis=-1)).max() <= _GREY:
        grey = colours[..., 1] / np.float32(255)
        if grey.min() == grey.max() > 0:
            raise ImageReadError(f"The mask {name} has one colour everywhere: set or not set? {_CURE}")
        return mask_of_grey(grey, name)
    first, second = _two_colours(colours, name)
    chroma, luma = [float(np.ptp(colour)) for colour in (first, second)], [colour @ _LUMA for colour in (first, second)]
    if min(chroma) <= _GREY < max(chroma) / 2:
        second_is_set = chroma[1] > chroma[0]
    elif abs(luma[1] - luma[0]) > _GREY:
        second_is_set = bool(luma[1] > luma[0])
    else:
        raise ImageReadError(f"The mask {name} has two colours of one brightness: which is set? {_CURE}")
    line = second - first
    along = ((colours - first) @ line / (line @ line)).clip(0, 1).astype(np.float32)
    aside = np.abs(colours - first - along[..., None] * line).max(axis=-1)
    if (third := float(np.mean(aside > 2 * _GREY))) > 0.05:
        raise _no_mask(name, third, str(tuple(map(int, first))), str(tuple(map(int, second))))
    return mask_of_grey(along if second_is_set else 1 - along, name)


def _two_colours(
    colours: UInt8[np.ndarray, "height width 3"], name: str
) -> tuple[Float[np.ndarray, " rgb"], Float[np.ndarray, " rgb"]]:
    """The most frequent colour, and the most frequent one of those that are far from it."""
    packed, counts = np.unique(colours.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32), return_counts=True)
    counted = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.float32)
    first = counted[counts.argmax()]
    far = np.abs(counted - first).max(axis=1) > _GREY
    if not far.any():
        raise ImageReadError(f"The mask {name} has one colour everywhere: set or not set? {_CURE}")
    return first, counted[far][counts[far].argmax()]
