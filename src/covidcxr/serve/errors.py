"""Errors of the server, each with its HTTP status."""

from __future__ import annotations

from covidcxr.errors import CovidCXRError

__all__ = ["RequestError"]


class RequestError(CovidCXRError):
    """A request that the server does not fulfil.

    Args:
        status: HTTP status, from 400 up.
        message: What is wrong and what to do, in one sentence or two.
        retry_after: Seconds after which it makes sense to retry; None = never.

    Example:
        ```python
        from covidcxr.serve.errors import RequestError

        error = RequestError(503, "The server is busy. Try again in a second.", retry_after=1)
        assert error.headers == {"Retry-After": "1"}
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
