"""The command line: `covidcxr VERB`, one file a verb."""

from covidcxr.cli.main import main

__all__ = ["main"]
