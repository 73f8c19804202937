"""A bounded number of processes that decode uploads; one that dies, hangs or grows takes only its own image with it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr import aliases
from covidcxr.errors import ImageReadError
from covidcxr.serve.settings import Limits

__getattr__ = partial(aliases.find, __name__)

__all__ = ["DecodedImage", "Decoder"]

_PIPE_BYTES = 4_000_000
_SECRET = "COVIDCXR_TOKEN"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image as it is kept.

    Attributes:
        pixels: 8-bit grey, 0 = black.
        png: The same as PNG, without any metadata.
        thumbnail: The image made small, as PNG.
        sha256: Of its size and pixels.
        notes: What was done to it on the way, a sentence each.
        identifiers: DICOM identifiers by name, if they were asked for.

    Example:
        ```python
        import asyncio
        import io

        from PIL import Image

        from covidcxr.serve import Limits
        from covidcxr.serve.decoder import Decoder

        async def decode(content: bytes) -> tuple[int, int]:
            decoder = Decoder(1, Limits())
            image = await decoder.image(content)
            await decoder.stop()
            return image.pixels.shape

        file = io.BytesIO()
        Image.new("L", (30, 20)).save(file, "PNG")
        assert asyncio.run(decode(file.getvalue())) == (20, 30)
        ```
    """

    pixels: UInt8[np.ndarray, "height width"]
    png: bytes
    thumbnail: bytes
    sha256: str
    notes: tuple[str, ...]
    identifiers: dict[str, str]


class Decoder:
    """Decodes images and masks in other processes.

    Args:
        workers: How many; further images wait.
        limits: Time, memory and pixels of one image.
        keep_identifiers: Whether DICOM identifiers are returned.

    Example:
        See `DecodedImage`.
    """

    def __init__(self, workers: int, limits: Limits, *, keep_identifiers: bool = False) -> None:
        self._limits = limits
        self._keep_identifiers = keep_identifiers
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._idle.put_nowait(None)
        self._running: set[Process] = set()

    async def start(self) -> None:
        """Start all processes, so that the first image need not wait for one."""
        free = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
        for process in free:
            self._idle.put_nowait(process or await self._launch())

    async def stop(self) -> None:
        """End all processes."""
        for process in list(self._running):
            await self._end(process)

    async def image(self, content: bytes) -> DecodedImage:
        """Decode an image.

        Args:
            content: The file.

        Returns:
            The image.

        Raises:
            ImageReadError: If it cannot be read, or not within its time and memory.
        """
        facts, (pixels, png, thumbnail) = await self._order(
            content, 3, {"kind": "image", "keep_identifiers": self._keep_identifiers}
        )
        grey = np.frombuffer(pixels, np.uint8).reshape(facts["height"], facts["width"])
        return DecodedImage(grey, png, thumbnail, facts["sha256"], tuple(facts["notes"]), facts["identifiers"])

    async def mask(self, content: bytes, size: tuple[int, int]) -> tuple[Bool[np.ndarray, "height width"], bytes]:
        """Decode a mask.

        Args:
            content: The file.
            size: Height and width of its image.

        Returns:
            The mask, and the same as PNG.

        Raises:
            ImageReadError: If it is no such mask.
        """
        _, (pixels, png) = await self._order(content, 2, {"kind": "mask", "size": list(size)})
        return np.frombuffer(pixels, np.bool_).reshape(size), png

    async def _order(self, content: bytes, parts: int, order: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        process = await self._idle.get()
        sound = False
        try:
            if process is None or process.returncode is not None:
                process = await self._launch()
            async with asyncio.timeout(self._limits.decode_seconds):
                facts, received = await _request(process, content, order)
            sound = True
        except TimeoutError as error:
            raise ImageReadError(
                f"Decoding the image took more than {self._limits.decode_seconds:.0f} seconds. Save it as PNG."
            ) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ImageReadError(
                "The image ended the process that decoded it: it is damaged, or needs too much memory. Save it as PNG."
            ) from error
        finally:
            if not sound and process is not None:  # also when the client went away: it is in the middle of an image
                await self._end(process)
            self._idle.put_nowait(process if sound else None)
        if "error" in facts:
            raise ImageReadError(facts["error"])
        assert len(received) == parts
        return facts, received

    async def _launch(self) -> Process:
        settings = {name: value for name, value in os.environ.items() if name != _SECRET}
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each reserves memory
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "covidcxr.serve.worker"),
            *(str(self._limits.decode_bytes), str(self._limits.pixels)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=_PIPE_BYTES,
            env=settings | one_thread,
        )
        self._running.add(process)
        return process

    async def _end(self, process: Process) -> None:
        self._running.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _request(process: Process, content: bytes, order: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Send an order, and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"bytes": len(content), **order}).encode() + b"\n")
    process.stdin.write(content)
    await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        raise asyncio.IncompleteReadError(line, None)
    facts: dict[str, Any] = json.loads(line)
    return facts, [await process.stdout.readexactly(length) for length in facts.pop("parts")]
