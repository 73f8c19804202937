"""What the server refuses, with the status that says so in HTTP."""

from __future__ import annotations

from covidcxr.errors import CovidCXRError

__all__ = ["RefusalError"]


class RefusalError(CovidCXRError):
    """A request that is not answered.

    Args:
        status: HTTP status, from 400 up.
        message: What is wrong and what to do, in one sentence or two.
        retry_after: Seconds after which asking again makes sense; None = never.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
