"""What is wrong with a value of a config, in words for people who have never seen pydantic."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from towline.config.record import suggest
from towline.config.renamed import RENAMED

#: keys that take one of several kinds of value: pydantic tells what is wrong with each kind
_UNIONS: Mapping[tuple[str, str], str] = {
    ("data", "source"): "must be a path, a list of paths, or a mapping with url and query",
    ("data", "positive"): "must be one class: text, a whole number, true or false",
    ("split", "holdout"): "must be a share below 0.9, or a duration such as 28d",
}
_KINDS: Mapping[str, str] = {
    "bool": "true or false", "dict": "a mapping of keys to values", "float": "a number", "int": "a whole number",
    "list": "a list", "model": "a mapping of keys to values", "string": "text",
    "time_delta": "a duration such as 28d or 36h", "tuple": "a list",
}  # fmt: skip
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "greater than"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"), "less_than_equal": ("le", "at most"),
}  # fmt: skip
_PATTERNS: Mapping[str, str] = {
    "name": "must be lower-case letters, digits and hyphens, at most 63, and begin with a letter or a digit",
    "candidates.name": "must be letters, digits, hyphens and underscores, at most 60",
    "package.repository": "must be the name of an image, such as registry.example.com/team/houses",
}
_SECRET = ("url", "query", "webhook")


class ConfigProblem(NamedTuple):
    """One thing that is wrong: the keys that lead to it, what it is, and the remedy where there is a plain one."""

    keys: tuple[str, ...]
    message: str
    remedy: str = ""


def describe_problems(
    errors: Sequence[Mapping[str, Any]], known: "Mapping[tuple[str, ...], set[str]]"
) -> list[ConfigProblem]:
    """What pydantic found, each thing once.

    Args:
        errors: of a ``ValidationError``.
        known: the keys that there are below each path at which an unknown one was found.
    """
    problems: dict[tuple[str, ...], ConfigProblem] = {}
    for error in errors:
        problem = _problem(error, known)
        if problem.keys not in problems or len(error["loc"]) > len(problem.keys) + 1:
            problems[problem.keys] = problem
    # pydantic reports a list or a union as wrong too if one of its members is wrong
    return [one for one in problems.values() if not any(keys[: len(one.keys)] == one.keys != keys for keys in problems)]


def _problem(error: Mapping[str, Any], known: "Mapping[tuple[str, ...], set[str]]") -> ConfigProblem:
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    for union, message in _UNIONS.items():
        if path[:2] == union and error["type"] not in ("missing", "value_error"):
            return ConfigProblem(union, message) if len(path) < 4 else _plain(error, (*union, *path[3:]), known)
        if path[:2] == union:
            path = (*union, *path[3:])
    return _plain(error, path, known)


def _plain(
    error: Mapping[str, Any], keys: tuple[str, ...], known: "Mapping[tuple[str, ...], set[str]]"
) -> ConfigProblem:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    label = ".".join(part for part in keys if not part.isdigit())
    if kind == "extra_forbidden":
        new = RENAMED.get(label)
        remedy = f"rename it to {new}" if new else suggest(keys[-1], known.get(keys[:-1], set()))
        return ConfigProblem(keys, f"is now {new}" if new else "unknown key", remedy)
    if kind == "missing":
        return ConfigProblem(keys, "is missing")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        what = "unknown key" if "[key]" in error["loc"] else f"must be one of {', '.join(choices)}{_given(keys, value)}"
        return ConfigProblem(keys, what, suggest(str(value), choices))
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return ConfigProblem(keys, f"must be {words} {context[key]}{_given(keys, value)}")
    if kind == "string_pattern_mismatch":
        return ConfigProblem(keys, _PATTERNS.get(label, f"does not match {context['pattern']}") + _given(keys, value))
    if kind == "too_short":
        return ConfigProblem(keys, f"must have at least {context['min_length']} entry")
    if kind in ("string_too_short", "string_too_long"):
        least = kind == "string_too_short"
        count = context["min_length" if least else "max_length"]
        return ConfigProblem(
            keys, f"must have at {'least' if least else 'most'} {count} character{_given(keys, value)}"
        )
    for begin, words in _KINDS.items():
        if kind.startswith(f"{begin}_"):
            remedy = f"write [{value}]" if words == "a list" and isinstance(value, str) else ""
            return ConfigProblem(keys, f"must be {words}{_given(keys, value)}", remedy)
    return ConfigProblem(keys, error["msg"].removeprefix("Value error, "))


def _given(keys: Sequence[str], value: object) -> str:
    """What was given instead, unless it is long or may be secret."""
    text = "nothing" if value is None else repr(value)
    return f", not {text}" if len(text) <= 60 and not set(keys) & set(_SECRET) else ""
