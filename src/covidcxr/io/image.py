"""Images and masks: from a file, bytes or an object in memory to grey numbers, and back to PNG.

The format of a file is taken from its first bytes, never from its name: in real collections some `.jpg` files are
PNG, and some `.png` files WebP. Whatever cannot be read raises an `ImageReadError` that says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from io import BufferedReader, BytesIO, TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Shaped

from covidcxr.errors import ImageReadError, ImageTooLargeError
from covidcxr.io.codestream import quiet_decoders
from covidcxr.io.dicom import dicom_array, dicom_size, is_dicom, read_dicom
from covidcxr.io.folders import replace_file
from covidcxr.io.masks import encode_mask, mask_of_grey, mask_of_picture
from covidcxr.io.pixels import (
    Pixels,
    array_to_pixels,
    check_bits,
    decode_picture,
    is_a,
    is_single_image,
    loaded_picture,
    open_picture,
    picture_to_pixels,
    unit_scale,
)
from covidcxr.types import ImageLike
from covidcxr.utils.plain import user_path

if TYPE_CHECKING:
    import PIL.Image
    import pydicom

File: TypeAlias = BufferedReader | BytesIO
Grey: TypeAlias = Float[np.ndarray, "height width"]
Numbers: TypeAlias = Shaped[np.ndarray, "..."]

__all__ = [
    "MAX_PIXELS",
    "file_content",
    "image_size",
    "is_single_image",
    "is_sixteen_bit",
    "read_image",
    "read_mask",
    "read_pixels",
    "write_image",
    "write_mask",
]

MAX_PIXELS = 100_000_000
"""Files that claim more pixels are refused before they are decoded: the largest images have about 20 million."""

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_WIDTH, _HEIGHT = 256, 257  # TIFF tags


def read_image(image: ImageLike, *, bits: int | None = None) -> Float[np.ndarray, "height width"]:
    """Read an image as grey.

    Files (path or bytes) may be PNG, JPEG, TIFF, BMP, WebP or DICOM, with one picture in them. Colour becomes
    luma (ITU-R 601), what is transparent becomes black, EXIF orientation is applied. 8 and 16 bits are divided
    by 255 and 65535. DICOM goes through the modality LUT (rescale slope and intercept) and the first VOI LUT or
    window; without one, the pixels' own smallest and largest value become 0 and 1; padding becomes 0 and
    MONOCHROME1 is inverted, so that dense tissue is bright in every image.

    Arrays and tensors hold bool, uint8, uint16, or floats in [0, 1]; axes are [height, width] or three with
    channels: last if that axis has length 1, 3 or 4 (RGBA), else first if that one has length 1 or 3.

    Args:
        image: Path, content of a file (bytes, or any buffer of them), open file or upload, NumPy array, PIL image,
            torch tensor or pydicom dataset. It is not changed; an open file is read from its beginning, if it can be.
        bits: How many bits the numbers have where their type does not tell, 8 to 16: of 16-bit pictures that hold fewer
            (12 bits in 16: white = 4095), of other whole numbers, and of floats beyond 1. 8 bits stay 8 bits, and DICOM
            tells for itself.

    Returns:
        A new float32 array in [0, 1], 0 = black.

    Raises:
        ImageReadError: If it cannot be read; says why and what to do.
        ConfigError: If `bits` is not in 8 to 16.

    Example:
        ```python
        import numpy as np

        from covidcxr import read_image

        stored = np.array([[0, 4095]], np.uint16)  # 12 bits in 16
        assert read_image(stored, bits=12).tolist() == [[0, 1]]
        ```
    """
    return unit_scale(read_pixels(image, bits=bits))


def read_pixels(image: ImageLike, *, bits: int | None = None, enough: tuple[int, int] | None = None) -> Pixels:
    """Read an image as `read_image` does, but keep 8 bits as they are: a quarter of the memory, and faster.

    Args:
        image: What `read_image` reads.
        bits: As of `read_image`.
        enough: Height and width that the image will be brought to. A JPEG file at least six times as large is then
            decoded at a half, quarter or eighth of its size that is still three times as large, in about half the
            time; after that, it differs by at most 3 greys of 255.

    Returns:
        A new array, 0 = black: uint8 where the image has 8 bits (white = 255), else float32 in [0, 1].

    Raises:
        ImageReadError: If it cannot be read; says why and what to do.
        ConfigError: If `bits` is not in 8 to 16.

    Example:
        ```python
        import numpy as np

        from covidcxr.io.image import read_pixels

        assert read_pixels(np.array([[0, 255]], np.uint8)).tolist() == [[0, 255]]
        ```
    """
    check_bits(bits)
    image = file_content(image)
    name = _name(image)
    with _explained(name):
        if isinstance(image, str | os.PathLike | bytes):
            with _open(image, name) as file:
                return _from_file(file, name, bits, enough)
        if isinstance(image, np.ndarray):
            return array_to_pixels(np.asarray(image), name, bits)
        if is_a(image, "torch", "Tensor"):
            tensor = cast(Any, image).detach().cpu()
            return array_to_pixels((tensor.float() if tensor.is_floating_point() else tensor).numpy(), name, bits)
        if is_a(image, "PIL.Image", "Image"):
            picture = cast("PIL.Image.Image", image)
            _check_pixels(picture.height, picture.width, name)
            return picture_to_pixels(loaded_picture(picture, name), name, bits)
        if is_a(image, "pydicom", "Dataset"):
            return _from_dicom(cast("pydicom.Dataset", image), name)
    raise ImageReadError(
        f"{name} is no image. Give a path, bytes, an open file, a NumPy array, a PIL image, a torch tensor or a "
        f"pydicom dataset."
    )


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a mask file: an image of two levels, one set and the other not.

    Which of them is set, whatever the numbers (0/1, 0/255, 0/65535, whole numbers, floats) and the format:

    - of two greys the brighter one, as the picture is seen;
    - of a grey (black, white) and a colour the coloured one;
    - of two colours the brighter one, as in colour maps;
    - what is transparent is not set; where all that is opaque has one colour, it is set;
    - index 0 of a palette is never set: where another rule would set it, the mask is refused.

    In between, JPEG noise and soft edges are cut at the middle. A picture of one level is all False if that is black,
    transparent or index 0 of a palette, and all True if it is 1 or white and not stored in colour.

    Args:
        path: The file, of any format that `read_image` reads.
        size: Height and width that the mask must have, those of its image. The mask is never resized here.

    Returns:
        A bool array [height, width].

    Raises:
        ImageReadError: If it cannot be read, is of another size, or does not have two levels of which one is set.
    """
    name = _name(path)
    with _explained(name), _open(path, name) as file:
        head = file.read(256)
        if is_dicom(head):
            mask = mask_of_grey(unit_scale(_from_dicom(read_dicom(file, name), name)), name)
        else:
            mask = mask_of_picture(_decode_picture(file, head, name), name)
    if size is not None and mask.shape != tuple(size):
        raise ImageReadError(
            f"The mask {name} is {mask.shape[0]} x {mask.shape[1]} (height x width) and its image "
            f"{size[0]} x {size[1]}. Pair it with the right image, or resize it (nearest neighbour)."
        )
    return mask


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
        picture = open_picture(file, head, name)
        tags = getattr(picture, "tag_v2", {})  # Pillow's size of a turned TIFF depends on its version
        width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else picture.size
        _check_pixels(height, width, name)
        if picture.format == "PNG":  # Pillow decodes a PNG to see whether an orientation stands behind the pixels
            file.seek(0)
            content = file.read()
            if not any(word in content for word in (b"eXIf", b"exif", b"tiff:Orientation")):
                return height, width
        return (width, height) if picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (height, width)


def is_sixteen_bit(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a grey picture of 16 bits a pixel, by its header alone.

    Args:
        path: Any file.

    Returns:
        False of DICOM too, whose header says what its numbers mean, and of a file that cannot be read.
    """
    name = _name(path)
    try:
        with _explained(name), _open(path, name) as file:
            head = file.read(256)
            return not is_dicom(head) and open_picture(file, head, name).mode.startswith("I;16")
    except ImageReadError:
        return False


def write_mask(path: str | os.PathLike[str], mask: Bool[np.ndarray, "height width"], *, sync: bool = True) -> None:
    """Write a mask as PNG of 1 bit, black and white. The file appears complete or not at all.

    Args:
        path: The PNG file; its folder is made if need be.
        mask: True inside the mask.
        sync: Wait until it is on the disk; see `replace_file`.

    Raises:
        ImageReadError: If `mask` is not a bool array with two axes.
        OSError: If the folder cannot be made or the disk is full.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ImageReadError(
            f"A mask is a bool array [height, width], not {mask.dtype} {list(mask.shape)}. Cut probabilities "
            f"first: `probability >= 0.5`."
        )
    with replace_file(user_path(path), sync=sync) as draft:
        draft.write_bytes(encode_mask(mask))


def write_image(path: str | os.PathLike[str], image: ImageLike) -> None:
    """Write an image as 8-bit grey PNG. The file appears complete or not at all.

    Args:
        path: The PNG file; its folder is made if need be.
        image: What `read_image` reads.

    Raises:
        ImageReadError: If `image` is not what `read_image` reads.
        OSError: If the folder cannot be made or the disk is full.
    """
    from PIL import Image

    pixels = read_pixels(image)
    eight_bits = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
    with replace_file(user_path(path)) as draft:
        Image.fromarray(eight_bits).save(draft, format="PNG")


def _name(image: object) -> str:
    if isinstance(image, str | os.PathLike):
        return f"'{os.fspath(image)}'"
    if isinstance(image, bytes):
        return "The given file content"
    return f"The given {type(image).__module__.partition('.')[0]} {type(image).__name__}".replace("builtins ", "")


def file_content(image: Any) -> Any:
    """Return the content of an open file, an upload or a buffer as bytes, and anything else as it is.

    Args:
        image: Any object.

    Returns:
        Bytes, or the object itself.

    Raises:
        ImageReadError: If a file was opened as text, or cannot be read.
    """
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if not callable(getattr(image, "read", None)):
        return image
    stream = image.file if iscoroutinefunction(image.read) and hasattr(image, "file") else image  # FastAPI's UploadFile
    with _explained(_name(image)):
        if hasattr(stream, "seek") and getattr(stream, "seekable", lambda: True)():
            stream.seek(0)
        content = b"" if isinstance(stream, TextIOBase) else stream.read()
    if isinstance(stream, TextIOBase) or not isinstance(content, bytes):
        raise ImageReadError(f"{_name(image)} gives no bytes. Open the file as open(path, 'rb').")
    return content


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        with quiet_decoders():
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
    path = user_path(image)
    try:
        if path.is_file():
            return path.open("rb")
        if path.is_dir():
            locked = "" if os.access(path, os.R_OK | os.X_OK) else ", and it cannot be opened: check its permissions"
            raise ImageReadError(f"{name} is a folder{locked}. Give the images in it one by one.")
        raise ImageReadError(f"There is no file {name}. Check the path (it starts from {str(Path.cwd())!r}).")
    except OSError as error:
        raise ImageReadError(f"{name} cannot be opened: {error.strerror}. Check its permissions.") from error


def _check_pixels(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise ImageReadError(f"{name} has no pixels: it is {height} x {width}. Get it again.")
    if height * width > MAX_PIXELS:
        raise ImageTooLargeError(
            f"{name} claims {height} x {width} pixels, more than any image ({MAX_PIXELS:,}). Shrink it first, or, "
            f"if you trust it, raise covidcxr.io.MAX_PIXELS."
        )


def _from_file(file: File, name: str, bits: int | None, enough: tuple[int, int] | None) -> Pixels:
    head = file.read(256)
    if is_dicom(head):
        return _from_dicom(read_dicom(file, name), name)
    return picture_to_pixels(_decode_picture(file, head, name, enough), name, bits)


def _decode_picture(file: File, head: bytes, name: str, enough: tuple[int, int] | None = None) -> PIL.Image.Image:
    picture = open_picture(file, head, name)
    _check_pixels(picture.height, picture.width, name)
    return decode_picture(picture, file, name, enough)


def _from_dicom(dataset: pydicom.Dataset, name: str) -> Pixels:
    _check_pixels(*dicom_size(dataset, name), name)
    seen = dicom_array(dataset, name)
    return seen if seen.ndim == 2 else array_to_pixels(seen, name)  # of one colour: new, and in [0, 1]
