"""One core for work that gains nothing from several."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import cv2
import pytest
import torch

from covidcxr.utils.threads import single_threaded


def counts() -> tuple[int, int]:
    return torch.get_num_threads(), cv2.getNumThreads()


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = counts()
    torch.set_num_threads(3)
    cv2.setNumThreads(3)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def test_all_is_as_it_was_after_it() -> None:
    with single_threaded():
        assert counts() == (1, 1)
        with single_threaded():
            assert counts() == (1, 1)
        assert counts() == (1, 1)
    assert counts() == (3, 3)
    with pytest.raises(KeyError), single_threaded():
        raise KeyError
    assert counts() == (3, 3)


def test_threads_that_come_and_go_in_any_order() -> None:
    inside, first_left = threading.Event(), threading.Event()
    found = []

    def second() -> None:
        with single_threaded():
            found.append(counts())
            inside.set()
            assert first_left.wait(10)
            found.append(counts())
        found.append(counts())

    thread = threading.Thread(target=second)
    with single_threaded():
        thread.start()
        assert inside.wait(10)
    assert torch.get_num_threads() == 3
    assert cv2.getNumThreads() == 1  # which counts for the whole process, and the second is at work
    first_left.set()
    thread.join(10)
    assert found == [(1, 1), (1, 1), (3, 3)]
    assert counts() == (3, 3)
