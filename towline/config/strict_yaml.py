"""Strict YAML: a loader that rejects repeated keys and oversized texts, and the positions of values for errors.

PyYAML's tree has the positions. ruamel.yaml would replace the check of repeated keys, but not that of the limits.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import yaml

from towline.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 30
MAX_VALUES = 20_000  # an alias counts as the nodes that it refers to


def parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """Parses a YAML text; returns its value and the tree of its nodes, which have positions.

    Raises:
        ConfigError: invalid YAML, a repeated key, or a text beyond the limits of size, nesting and aliases; names the
            line.
    """
    try:
        loader = _StrictLoader(text)
        tree = loader.get_single_node()
        return (None if tree is None else loader.construct_document(tree)), tree
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f"{where}:{mark.line + 1}" if mark else where
        began = error.context_mark
        context = f", {error.context} that begins on line {began.line + 1}" if error.context and began else ""
        what = f"bad YAML: {error.problem or error.context}{context}"
        raise ConfigError(what, where=spot, remedy="correct the line") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"bad YAML: {error}", where=where, remedy="save the file as UTF-8 text") from None
    except ValueError as error:  # such as the date 2026-02-30, or an integer of 5,000 digits
        raise ConfigError(f"bad YAML: {error}", where=where, remedy="correct the value, or quote it") from None


def override(raw: dict[str, Any], assignment: str) -> None:
    """Applies one ``key.path=value``, where the value is YAML; a key that is null is replaced by a mapping.

    Raises:
        ConfigError: this is not an assignment, or a key on the path is not a mapping.
    """
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"not an override: {assignment!r}", where="--set", remedy="write --set gate.max.mae=50")
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        if isinstance(node, dict):
            child = node.get(parent)
            node[parent] = {} if child is None else copy.copy(child)  # an anchor and its aliases are one object
            node = node[parent]
    if not isinstance(node, dict):
        raise ConfigError(f"{key!r} is not below a mapping", where="--set", remedy="set keys of mappings only")
    try:
        node[last], _ = parse(value, f"--set {key}")
    except ConfigError as error:
        raise ConfigError(
            f"not a YAML value: {value[:80]!r}", where=f"--set {key}", remedy="quote it", details=(error.what,)
        ) from None


def find_position(node: yaml.Node | None, keys: Sequence[str]) -> tuple[int, int] | None:
    """The line and column, from 1, of the last of ``keys`` that is in the tree.

    A key is that of a mapping, the position in a list, or the text of a member of a list or of a value.
    """
    mark = None
    for key in keys:
        begin, node = _find_member(node, key)
        if begin is None:
            break
        mark = begin.start_mark
    return (mark.line + 1, mark.column + 1) if mark else None


def _find_member(node: yaml.Node | None, key: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The node at which a member begins, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        pairs = [*node.value, *((value, None) for _, value in node.value)]
    elif isinstance(node, yaml.SequenceNode):
        if key.isdigit() and int(key) < len(node.value):
            return node.value[int(key)], node.value[int(key)]
        pairs = [(member, None) for member in node.value]
    else:
        pairs = [(node, None)]
    return next(
        ((name, value) for name, value in pairs if isinstance(name, yaml.ScalarNode) and name.value == key),
        (None, None),
    )


class _StrictLoader(yaml.SafeLoader):
    """Refuses repeated keys, of which YAML would take the last, and texts that exceed the limits."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_BYTES:
            raise yaml.MarkedYAMLError(problem=f"the text is longer than {MAX_BYTES:,} characters")
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # number of values of each complete node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts values and depth; an alias counts as all values of its anchor."""
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._limit_error(f"values are nested more than {MAX_DEPTH} deep", event)
        is_alias = isinstance(event, yaml.AliasEvent)
        self._values += 0 if is_alias else 1
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise self._limit_error(f"the alias *{event.anchor} is inside its own anchor", event)
            self._values += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            raise self._limit_error(f"more than {MAX_VALUES:,} values, with aliases expanded", event)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is repeated", key_node.start_mark)
            keys.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)

    @staticmethod
    def _limit_error(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=cast("yaml.error.Mark", event.start_mark))
