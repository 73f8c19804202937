"""YAML files of configs: read without tags and repeated keys, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file

__all__ = ["read_yaml", "write_yaml"]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a table, of which YAML keeps the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        known: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in known:
                    raise ConfigError(
                        f"the key {key.value!r} stands twice in one table (line {key.start_mark.line + 1})."
                    )
                known.add((key.tag, key.value))
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values.

    Args:
        path: The file.

    Returns:
        Plain data: mappings, lists, text, numbers, dates and None.

    Raises:
        ConfigError: If it is no YAML, has a tag that makes an object (`!!python/...`), a key that stands twice in one
            table, or holds something other than keys and values.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values (model, data, trainer, ...).")
    return data


def write_yaml(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a config as YAML, atomically.

    Args:
        path: The file to write.
        config: Plain data.

    Returns:
        The path.
    """
    with replace_file(path) as draft:
        draft.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
