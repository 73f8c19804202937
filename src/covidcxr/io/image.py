"""Images and masks: from a file, bytes or an object in memory to grey numbers, and back to PNG.

The format of a file is taken from its first bytes, never from its name: in real collections some `.jpg` files are
PNG, and some `.png` files WebP. Whatever cannot be read raises an `ImageReadError` that says what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Shaped

from covidcxr.errors import ImageReadError
from covidcxr.io.atomic import replace_file
from covidcxr.io.codestream import ends_grey, jpeg_is_cut
from covidcxr.io.dicom import dicom_array, dicom_size, is_dicom, read_dicom
from covidcxr.types import ImageLike

if TYPE_CHECKING:
    import PIL.Image
    import pydicom

File: TypeAlias = BufferedReader | BytesIO
Grey: TypeAlias = Float[np.ndarray, "height width"]
Numbers: TypeAlias = Shaped[np.ndarray, "..."]

__all__ = ["MAX_PIXELS", "image_size", "is_single_image", "read_image", "read_mask", "write_image", "write_mask"]

MAX_PIXELS = 100_000_000
"""Files that claim more pixels are refused before they are decoded: the largest images have about 20 million."""

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
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_PHOTOMETRIC, _BITS_PER_SAMPLE, _WIDTH, _HEIGHT = 262, 258, 256, 257  # TIFF tags


def read_image(image: ImageLike) -> Float[np.ndarray, "height width"]:
    """Read an image as grey.

    Files (path or bytes) may be PNG, JPEG, TIFF, BMP, WebP or DICOM, with one picture in them. Colour becomes
    luma (ITU-R 601), what is transparent becomes black, EXIF orientation is applied. 8 and 16 bits are divided
    by 255 and 65535. DICOM goes through the modality LUT (rescale slope and intercept) and the first VOI LUT or
    window; without one, the pixels' own smallest and largest value become 0 and 1; padding becomes 0 and
    MONOCHROME1 is inverted, so that dense tissue is bright in every image.

    Arrays and tensors hold bool, uint8, uint16, or floats in [0, 1]; axes are [height, width] or three with
    channels: last if that axis has length 1, 3 or 4 (RGBA), else first if that one has length 1 or 3.

    Args:
        image: Path, bytes of a file, NumPy array, PIL image, torch tensor or pydicom dataset. It is not changed.

    Returns:
        A new float32 array in [0, 1], 0 = black.

    Raises:
        ImageReadError: If it cannot be read; says why and what to do.
    """
    name = _name(image)
    with _explained(name):
        if isinstance(image, str | os.PathLike | bytes):
            with _open(image, name) as file:
                return _from_file(file, name)
        if isinstance(image, np.ndarray):
            return _from_array(np.asarray(image), name)
        if _is_a(image, "torch", "Tensor"):
            tensor = cast(Any, image).detach().cpu()
            return _from_array((tensor.float() if tensor.is_floating_point() else tensor).numpy(), name)
        if _is_a(image, "PIL.Image", "Image"):
            return _from_pil(cast("PIL.Image.Image", image), name)
        if _is_a(image, "pydicom", "Dataset"):
            return _from_dicom(cast("pydicom.Dataset", image), name)
    raise ImageReadError(
        f"{name} is no image. Give a path, bytes, a NumPy array, a PIL image, a torch tensor or a pydicom dataset."
    )


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a mask file: of its two grey levels, the lower is False and the higher True.

    0/1, 0/255, one bit, palettes and colour maps all come out right. In between, JPEG noise and soft edges are
    cut at the middle. An image of one level is all False if that is 0, and all True if it is 1 or white.

    Args:
        path: The file, of any format that `read_image` reads.
        size: Height and width that the mask must have, those of its image. The mask is never resized here.

    Returns:
        A bool array [height, width].

    Raises:
        ImageReadError: If it cannot be read, is of another size, or is not black and white.
    """
    grey = read_image(path)
    name = _name(path)
    if size is not None and grey.shape != tuple(size):
        raise ImageReadError(
            f"The mask {name} is {grey.shape[0]} x {grey.shape[1]} (height x width) and its image "
            f"{size[0]} x {size[1]}. Pair it with the right image, or resize it (nearest neighbour)."
        )
    low, high = float(grey.min()), float(grey.max())
    if low == high:
        if low not in (0, 1, *(float(np.float32(1) / np.float32(white)) for white in (255, 65535))):
            raise ImageReadError(f"The mask {name} is grey {low:.3f} everywhere: set or not set? Save masks as 0/255.")
        return np.full(grey.shape, low > 0)
    margin = 0.1 * (high - low)
    between = float(np.mean((grey > low + margin) & (grey < high - margin)))
    # Levels close together with others between them are no noise but class numbers (0, 1, 2).
    if between > 0.05 or (between > 0 and high - low < 0.125):
        raise ImageReadError(
            f"{name} is no mask: {between:.1%} of its pixels are neither of its two levels {low:.3f} and {high:.3f}. "
            f"If it holds several classes, write one 0/255 mask a class; if it is an image, give its mask."
        )
    return grey > (low + high) / 2


def image_size(image: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Return the height and width that `read_image` would give, from the file's header alone.

    Args:
        image: Path, or the content of a file.

    Returns:
        Height and width in pixels, after the EXIF orientation.

    Raises:
        ImageReadError: If the header cannot be read.
    """
    name = _name(image)
    with _explained(name), _open(image, name) as file:
        head = file.read(256)
        if is_dicom(head):
            height, width = dicom_size(read_dicom(file, name, stop_before_pixels=True), name)
            _check_pixels(height, width, name)
            return height, width
        picture = _open_picture(file, head, name)
        tags = getattr(picture, "tag_v2", {})  # Pillow's size of a turned TIFF depends on its version
        width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else picture.size
        _check_pixels(height, width, name)
        if picture.format == "PNG":  # Pillow decodes a PNG to see whether an orientation stands behind the pixels
            file.seek(0)
            content = file.read()
            if not any(word in content for word in (b"eXIf", b"exif", b"tiff:Orientation")):
                return height, width
        return (width, height) if picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (height, width)


def write_mask(path: str | os.PathLike[str], mask: Bool[np.ndarray, "height width"]) -> None:
    """Write a mask as PNG, 0 and 255. The file appears complete or not at all.

    Args:
        path: The PNG file; its folder is made if need be.
        mask: True inside the mask.

    Raises:
        ImageReadError: If `mask` is not a bool array with two axes.
        OSError: If the folder cannot be made or the disk is full.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ImageReadError(
            f"A mask is a bool array [height, width], not {mask.dtype} {list(mask.shape)}. Cut probabilities "
            f"first: `probability >= 0.5`."
        )
    _write_png(Path(path), mask.astype(np.uint8) * np.uint8(255))


def write_image(path: str | os.PathLike[str], image: ImageLike) -> None:
    """Write an image as 8-bit grey PNG. The file appears complete or not at all.

    Args:
        path: The PNG file; its folder is made if need be.
        image: What `read_image` reads.

    Raises:
        ImageReadError: If `image` is not what `read_image` reads.
        OSError: If the folder cannot be made or the disk is full.
    """
    _write_png(Path(path), np.rint(read_image(image) * 255).astype(np.uint8))


def _write_png(path: Path, pixels: Numbers) -> None:
    from PIL import Image

    with replace_file(path) as draft:
        Image.fromarray(pixels).save(draft, format="PNG")


def _name(image: object) -> str:
    if isinstance(image, str | os.PathLike):
        return f"'{os.fspath(image)}'"
    if isinstance(image, bytes):
        return "The given file content"
    return f"The given {type(image).__module__.partition('.')[0]} {type(image).__name__}".replace("builtins ", "")


def is_single_image(images: object) -> bool:
    """Return whether an argument is one image, not a collection of images.

    Args:
        images: Any object.

    Returns:
        True for a path, bytes, a PIL image, a DICOM data set, and an array or tensor of at most three axes.
    """
    kinds = (("numpy", "ndarray"), ("PIL.Image", "Image"), ("torch", "Tensor"), ("pydicom", "Dataset"))
    if isinstance(images, str | bytes | os.PathLike) or any(_is_a(images, *kind) for kind in kinds):
        return getattr(images, "ndim", 0) < 4  # a batch [images, 1, height, width] is a collection
    return False


def _is_a(image: object, module: str, kind: str) -> bool:
    """Whether `image` is of that class; a package that nobody imported cannot have made it, so none is imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(image, getattr(loaded, kind))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ImageReadError:
        raise
    except Exception as error:  # on damaged input, decoders raise anything from SyntaxError to struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(
            f"{name} cannot be decoded: {reason.rstrip('.')}. It is corrupted or of a rare kind: get it again, or save "
            f"it as PNG (a DICOM file: uncompressed, for instance with `gdcmconv --raw IN OUT`)."
        ) from error


def _open(image: str | os.PathLike[str] | bytes, name: str) -> File:
    if isinstance(image, bytes):
        return BytesIO(image)
    path = Path(image)
    try:
        if path.is_dir():
            locked = "" if os.access(path, os.R_OK | os.X_OK) else ", and it cannot be opened: check its permissions"
            raise ImageReadError(f"{name} is a folder{locked}. Give the images in it one by one.")
        if not path.is_file():
            raise ImageReadError(f"There is no file {name}. Check the path (it starts from {str(Path.cwd())!r}).")
        return path.open("rb")
    except OSError as error:
        raise ImageReadError(f"{name} cannot be opened: {error.strerror}. Check its permissions.") from error


def _check_pixels(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise ImageReadError(f"{name} has no pixels: it is {height} x {width}. Get it again.")
    if height * width > MAX_PIXELS:
        raise ImageReadError(
            f"{name} claims {height} x {width} pixels, more than any image ({MAX_PIXELS:,}). Shrink it first, or, "
            f"if you trust it, raise covidcxr.io.MAX_PIXELS."
        )


def _from_file(file: File, name: str) -> Grey:
    head = file.read(256)
    if is_dicom(head):
        return _from_dicom(read_dicom(file, name), name)
    picture = _open_picture(file, head, name)
    grey = _from_pil(picture, name)
    if picture.format == "JPEG":
        corner = picture.crop((picture.width - 1, picture.height - 1, picture.width, picture.height))
        file.seek(0)
        if (picture.info.get("progressive") or ends_grey(np.asarray(corner))) and jpeg_is_cut(file.read()):
            raise ImageReadError(f"{name} is truncated: its data end before its last row. Copy or download it again.")
    return grey


def _from_dicom(dataset: pydicom.Dataset, name: str) -> Grey:
    _check_pixels(*dicom_size(dataset, name), name)
    return _from_array(dicom_array(dataset, name), name)


def _open_picture(file: File, head: bytes, name: str) -> PIL.Image.Image:
    """Open without decoding. Not by `Image.open`: it warns about size through the process-wide warning filters."""
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
    raise ImageReadError(
        f"{name} has an unsupported file format (it starts with {head[:8]!r}). Save it as PNG, JPEG, TIFF, BMP, "
        f"WebP or DICOM."
    )


def _from_pil(image: PIL.Image.Image, name: str) -> Grey:
    from PIL import ImageOps

    _check_pixels(image.height, image.width, name)
    # What phones append to a JPEG (MPO) are previews and brightness maps of the same picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageReadError(f"{name} holds several pictures. Save the image alone.")
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return _from_deep(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        grey: Grey = _from_array(np.asarray(image.convert("L")), name)
        grey *= _from_array(np.asarray(image.getchannel("A")), name)
        return grey
    return _from_array(np.asarray(image if image.mode in ("1", "L") else image.convert("L")), name)


def _from_deep(image: PIL.Image.Image, name: str) -> Grey:
    """Grey of more than 8 bits. Pillow's own conversion to 8 bits would clip it at 255."""
    pixels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        pixels = np.divide(pixels, 4095, dtype=np.float32)
    grey = _from_array(pixels, name)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only up to 8 bits
        grey = 1 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[np.asarray(image) == key] = 0
    return grey


def _from_array(array: Numbers, name: str) -> Grey:
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

        return _from_pil(Image.fromarray(np.ascontiguousarray(array)), name)  # rounds as it does for a file
    array = _unit_scaled(array, name)
    if array.ndim == 3:
        alpha = array[..., 3] if array.shape[-1] == 4 else 1
        array = (array[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) * alpha).clip(0, 1)
    return array


def _unit_scaled(array: Numbers, name: str) -> Numbers:
    """Bring white to 1, by the type of the numbers alone: a dark image must not be taken for another scale."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        white = 2 ** (8 * array.dtype.itemsize) - 1
        return cast(Numbers, np.divide(array, white, dtype=np.float32))
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype.kind != "f":
        raise ImageReadError(
            f"{name} holds {array.dtype}, whose white is unknown. Give uint8 (white = 255), uint16 (white = 65535) "
            f"or floats in [0, 1]."
        )
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageReadError(f"{name} holds NaN or infinite values. Replace them first.")
    if low < -1e-6 or high > 1 + 1e-6:
        raise ImageReadError(f"{name} holds values from {low:g} to {high:g}, not in [0, 1]. {_range_cure(low, high)}")
    return array.astype(np.float32).clip(0, 1)


def _range_cure(low: float, high: float) -> str:
    if low >= 0 and high <= 65535:
        return f"Divide by {'255' if high <= 255 else '65535 (by 4095 if it has 12 bits)'}."
    if low >= -1 and high <= 1:
        return "Give (image + 1) / 2."
    if -1024 <= low < -10 and high <= 1024:
        return "TorchXRayVision scales to [-1024, 1024]: give (image + 1024) / 2048."
    return "Give it before mean and standard deviation are taken out, scaled so that black is 0 and white is 1."
