"""One core for work that gains nothing from several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

__all__ = ["one_core"]

_lock = threading.Lock()
_inside: set[int] = set()
"""The threads that are in `one_core`."""
_before: tuple[int, int] = (1, 1)
"""How many threads torch and OpenCV started before the first of them came."""


@contextmanager
def one_core() -> Iterator[None]:
    """Let torch and OpenCV compute in the calling thread alone, without threads of their own.

    On a single film and a small network, or where films are shared among threads already, these would mostly wait for
    each other, and burn CPU time as they wait. Several threads may be here at a time, and one of them again: when the
    last one leaves, all is as it was.
    """
    global _before
    me = threading.get_ident()
    if me in _inside:
        yield
        return
    with _lock:
        if not _inside:
            _before = torch.get_num_threads(), cv2.getNumThreads()
            cv2.setNumThreads(1)
        _inside.add(me)
        torch.set_num_threads(1)  # torch counts thread by thread
    try:
        yield
    finally:
        with _lock:
            _inside.discard(me)
            torch.set_num_threads(_before[0])
            if not _inside:
                cv2.setNumThreads(_before[1])
