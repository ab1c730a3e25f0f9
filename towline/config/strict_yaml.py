"""YAML that is read strictly and remembers its lines, so that an error can name one."""

from typing import Any, cast

import yaml

from towline.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 30
MAX_VALUES = 20_000  # with each alias counted as the nodes that it stands for


def parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The value a YAML text holds, and the tree that knows its lines.

    Raises:
        ConfigError: bad YAML, a key that stands twice, or a text beyond the limits of size, nesting and aliases; names
            the line.
    """
    try:
        _check_limits(text)
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
    except ValueError as error:  # such as the date 2026-02-30, or an integer of 5,000 digits
        raise ConfigError(f"bad YAML: {error}", where=where, remedy="correct the value, or quote it") from None


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
        node[last], _ = parse(value, f"--set {key}")
    except ConfigError as error:
        raise ConfigError(
            f"not a YAML value: {value[:80]!r}", where=f"--set {key}", remedy="quote it", details=(error.what,)
        ) from None


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


def _check_limits(text: str) -> None:
    """Bounds what the text expands to before it is read: the loader recurses, and copies of a value copy its aliases.

    Raises:
        yaml.MarkedYAMLError: the text is too large, nested too deeply, or its aliases stand for too many values.
    """
    if len(text) > MAX_BYTES:
        raise yaml.MarkedYAMLError(problem=f"the text is longer than {MAX_BYTES:,} characters")
    expansion = _Expansion()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if problem := expansion.add(event):
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=cast("yaml.error.Mark", event.start_mark))


class _Expansion:
    """Counts the values of a text, event by event, each alias as the values that it stands for."""

    def __init__(self) -> None:
        self._open: list[tuple[str | None, int]] = []  # of each open collection: its anchor, and the values before it
        self._anchored: dict[str | None, int] = {}
        self._values = 0

    def add(self, event: yaml.Event) -> str | None:
        """What is beyond the limits now, or None."""
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in self._open):
                return f"the alias *{anchor} stands inside its own anchor"
            self._values += self._anchored.get(anchor, 0)  # the composer names an anchor that does not exist
        elif isinstance(event, yaml.ScalarEvent):
            self._values += 1
            self._anchored[anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open.append((anchor, self._values))
            self._values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._anchored[anchor] = self._values - before
        if len(self._open) > MAX_DEPTH:
            return f"values are nested more than {MAX_DEPTH} deep"
        if self._values > MAX_VALUES:
            return f"more than {MAX_VALUES:,} values, aliases counted as what they stand for"
        return None


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
