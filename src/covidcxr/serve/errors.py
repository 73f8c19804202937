"""Requests that the server does not fulfil, with the HTTP status that says so."""

from __future__ import annotations

from functools import partial

from covidcxr import aliases
from covidcxr.errors import CovidCXRError

__getattr__ = partial(aliases.find, __name__)

__all__ = ["RequestError"]


class RequestError(CovidCXRError):
    """A request that is not fulfilled.

    Args:
        status: HTTP status, from 400 up.
        message: What is wrong and what to do, in one sentence or two.
        retry_after: Seconds after which another try makes sense; None = never.

    Example:
        ```python
        from covidcxr.serve.errors import RequestError

        assert RequestError(503, "The server is busy.", retry_after=1).headers == {"Retry-After": "1"}
        ```
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
