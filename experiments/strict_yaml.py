"""YAML files whose every line counts: a key that stands twice is an error, not the loss of what it held first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from envs.errors import InputError


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line} has the key {key!r} again; each may stand once")
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises: InputError: no such file, no YAML, no mapping, or a key that stands twice.
    """
    if not path.is_file():
        raise InputError(f"{what} file {str(path)!r} does not exist")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping, as a {what} file does, not {type(values).__name__}")
    return values
