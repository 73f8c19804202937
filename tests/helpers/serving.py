"""A server on a free port for tests, and clients of it."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from covidcxr import Pipeline
from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.phantom import PhantomLabel, draw_phantom
from covidcxr.serve import ServeSettings
from covidcxr.serve.server import Server

CLASSES = ("covid19", "pneumonia", "normal")
TOKEN = "a-token-of-sixteen-letters-or-more"

Film = dict[str, Any]


def small_pipeline(seed: int = 0, temperature: float = 0.02) -> Pipeline:
    """The bundled lungs, and a classifier that nobody trained: what it says is nonsense, but depends on every pixel."""
    settings = PreprocessConfig(image_size=(96, 96), region="lungs")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ModelConfig(
            "classification", "timm:mobilenetv3_small_050", CLASSES, preprocess=settings, temperature=0.02
        )
        classifier = ClassificationModel(config)
    return Pipeline(lung_segmenter=Pipeline.from_pretrained("mini").lung_segmenter, classifier=classifier)


def finding_pipeline(classes: tuple[str, ...], seed: int = 0) -> Pipeline:
    """`small_pipeline` with a segmenter of findings that nobody trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ModelConfig(
            "segmentation",
            "smp:fpn",
            classes,
            "multilabel",
            {"encoder": "tu-mobilenetv3_small_050"},
            preprocess=PreprocessConfig(image_size=(96, 96)),
        )
        findings = SegmentationModel(config)
    plain = small_pipeline(seed)
    return Pipeline(lung_segmenter=plain.lung_segmenter, infection_segmenter=findings, classifier=plain.classifier)


@contextmanager
def running(store: Path | str, pipeline: Pipeline | None = None, **changes: Any) -> Iterator[httpx.Client]:
    """Run a server in a thread; the client knows its address and its token."""
    settings = replace(ServeSettings(store=store, port=0, workers=1), **changes)
    server = Server(settings, pipeline)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    try:
        with httpx.Client(base_url=server.address, headers=headers, timeout=60) as client:
            while client.get("/api/health").status_code == 503:
                time.sleep(0.05)
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive(), "the server did not stop"


def png_of(pixels: Any) -> bytes:
    """An 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def film_png(seed: int = 0, label: PhantomLabel = "covid19", size: tuple[int, int] = (320, 300)) -> bytes:
    """A drawn image."""
    return png_of(np.rint(draw_phantom(seed, label=label, size=size).image * 255))


def pixels_of(content: bytes) -> np.ndarray[Any, Any]:
    """The pixels of a PNG."""
    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture)


def upload(client: httpx.Client, content: bytes, name: str = "film.png") -> Film:
    """Upload an image that can be read."""
    response = client.post("/api/films", files={"file": (name, content)})
    assert response.status_code == 201, response.text
    film: Film = response.json()
    return film


@contextmanager
def raw(client: httpx.Client) -> Iterator[socket.socket]:
    """A bare connection to the server."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def dicom_of(pixels: Any, **tags: Any) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = np.ascontiguousarray(pixels, np.uint8).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
