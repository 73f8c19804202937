"""New names for labels: several may become one, and films of a label may be left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

        A map that names every label also says the order.

        Raises:
            ConfigError: If the map names a label that the data set has not.
        """
        for label in self.names:
            if label not in labels:
                raise ConfigError(f"label_map names the label {label!r}. {did_you_mean(label, labels)}")
        order = self.names if self.names.keys() >= set(labels) else labels
        renamed = (self.names.get(label, label) for label in order)
        return tuple(dict.fromkeys(label for label in renamed if label is not None))

    @property
    def dropped(self) -> frozenset[str]:
        """The labels whose films are left out."""
        return frozenset(label for label, name in self.names.items() if name is None)

    def rename(self, record: Record) -> Record:
        """Give a film its new label.

        Raises:
            ConfigError: If its classes are not exclusive.
        """
        if self.names and record.findings:
            raise ConfigError(
                f"label_map renames exclusive labels, but films such as {record.image_id} may show several classes at "
                f"once ({', '.join(record.findings)}). Leave label_map out."
            )
        label = self.names.get(record.label) if record.label is not None else None
        return record if label is None else replace(record, label=label)
