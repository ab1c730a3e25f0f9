"""YAML that is read strictly and remembers its lines, so that an error can name one."""

from typing import Any

import yaml

from towline.errors import ConfigError


def parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The value a YAML text holds, and the tree that knows its lines.

    Raises:
        ConfigError: bad YAML, or a key that stands twice; names the line.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader), yaml.compose(text, Loader=yaml.SafeLoader)  # noqa: S506 - safe too
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f"{where}:{mark.line + 1}" if mark else where
        began = error.context_mark
        context = f", {error.context} that begins on line {began.line + 1}" if error.context and began else ""
        what = f"bad YAML: {error.problem or error.context}{context}"
        raise ConfigError(what, where=spot, remedy="mend the line") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"bad YAML: {error}", where=where, remedy="save the file as UTF-8 text") from None


def override(raw: dict[str, Any], given: str) -> None:
    """Sets one ``key.path=value``; the value is YAML.

    Raises:
        ConfigError: it is no such assignment, or does not lead to a mapping.
    """
    key, equals, value = given.partition("=")
    if not equals or not key:
        raise ConfigError(f"not an override: {given!r}", where="--set", remedy="write --set gate.max.mae=50")
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"{key!r} does not lead to a mapping", where="--set", remedy="only mappings can be set into")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"not a YAML value: {value!r}", where=f"--set {key}", remedy="quote it") from None


def line(node: yaml.Node | None, keys: list[str]) -> int | None:
    """The line, from 1, of the last of ``keys`` that the tree holds."""
    found = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == key), None)
            if pair is None:
                break
            found, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            found = node.start_mark.line + 1
        else:
            break
    return found


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a key stand twice and keeps the last: refuse it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)
