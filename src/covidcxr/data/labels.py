"""New names for labels: several may become one, and films of a label may be left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, did_you_mean

__all__ = ["LabelMap"]


class LabelMap:
    """Renames labels.

    Args:
        names: From label to its new name; None leaves the films of that label out. Other labels stay as they are.
    """

    def __init__(self, names: Mapping[str, str | None] | None = None) -> None:
        self.names = dict(names or {})

    def classes(self, labels: Collection[str]) -> tuple[str, ...]:
        """Rename the labels of a data set, in their order; those that become one stand where the first stood.

        Raises:
            ConfigError: If the map names a label that the data set has not.
        """
        for label in self.names:
            if label not in labels:
                raise ConfigError(f"label_map names the label {label!r}. {did_you_mean(label, labels)}")
        renamed = (self.names.get(label, label) for label in labels)
        return tuple(dict.fromkeys(label for label in renamed if label is not None))

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """Rename the labels of films; films without a label stay."""
        for record in records:
            if record.label not in self.names:
                yield record
            elif (label := self.names[record.label]) is not None:
                yield replace(record, label=label)
