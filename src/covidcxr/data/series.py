"""Films of the ieee8023 collection inside other data sets: who is on them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from covidcxr.data.rows import Fault, Table

__all__ = ["SeriesPatients"]

# Films of one patient: "...-day3", "...-PA", "...fig1a"; what is left after the cut names the series.
_SERIES = re.compile(r"[-_. ](day-?\d+|[a-d]|pa|ap|l)$|(?<=\d)[a-d]$", re.IGNORECASE)


class SeriesPatients:
    """Tells the patients of films that were taken from the ieee8023 collection under their own names.

    Args:
        root: Folder that may hold the collection's `metadata.csv`, which knows them. Without it films are grouped by
            their names, which finds only some of the series; a warning says so.
        fault: Told of damaged rows of that table.
    """

    def __init__(self, root: Path, fault: Fault) -> None:
        self._known: dict[str, str] = {}
        table = root / "metadata.csv"
        if table.is_file():
            rows = Table(table, fault=fault)
            name, patient = rows.require("filename"), rows.require("patientid")
            self._known = {Path(row[name]).stem: row[patient] for _, row in rows}
            return
        warnings.warn(
            f"The patients of the COVID-19 films in {root} are guessed from file names, which misses many: films of "
            f"one patient may train and test. Put the metadata.csv of the ieee8023 collection there.",
            stacklevel=2,
        )

    def of(self, film: Path) -> str:
        """Return the patient of a film, "ieee8023-..."."""
        return f"ieee8023-{self._known.get(film.stem) or _SERIES.sub('', film.stem)}"
