"""The report of one film, for people and programs."""

from __future__ import annotations

from fastapi import APIRouter

from covidcxr.serve.desk import Desk

__all__ = ["report_routes"]


def report_routes(desk: Desk) -> APIRouter:
    """Return the routes of reports."""
    return APIRouter(prefix="/api")
