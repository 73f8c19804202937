"""What is linked with each other, directly or by way of others, has one leader."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Linked"]

T = TypeVar("T", int, str)


class Linked(Generic[T]):
    """Groups that grow by links: of those linked, the least leads all."""

    def __init__(self) -> None:
        self._above: dict[T, T] = {}

    def leader(self, one: T) -> T:
        """Return who leads the group; what was never linked leads itself."""
        while (above := self._above.get(one, one)) != one:
            one = above
        return one

    def link(self, one: T, other: T) -> None:
        """Make one group of the two groups."""
        first, second = sorted((self.leader(one), self.leader(other)))
        self._above[second] = first
