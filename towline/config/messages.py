"""Messages for invalid values of a config, in plain English instead of pydantic's words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from towline.config.record import suggest
from towline.errors import ConfigError

#: former config key → its name now, both in full, without positions in lists
RENAMED: Mapping[str, str] = {
    "data.level": "data.detrend", "retrain.need": "retrain.bad_windows", "retrain.of": "retrain.recent_windows",
    "retrain.signs": "retrain.triggers",
}  # fmt: skip
#: keys with several possible types: pydantic reports an error for each type
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
    """One invalid value: its path of keys, the message, and a remedy if there is an obvious one."""

    keys: tuple[str, ...]
    message: str
    remedy: str = ""


class ConfigProblemsError(ValueError):
    """Problems that a validator of several keys reports, each with its path of keys."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("; ".join(f"{'.'.join(problem.keys)}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)


def cron_error(line: str | None, where: str, error: Exception) -> ConfigError:
    """The error for a line of the schedule that is not valid."""
    remedy = 'write five fields, such as "0 2 * * *" for 02:00 every day'
    return ConfigError(f"not a cron line: {line!r}: {error}", where=where, remedy=remedy)


def describe_problems(
    errors: Sequence[Mapping[str, Any]], known: "Mapping[tuple[str, ...], set[str]]"
) -> list[ConfigProblem]:
    """The problems of a config, each once.

    Args:
        errors: of pydantic's ``ValidationError``.
        known: the known keys below each path with an unknown key.
    """
    problems: dict[tuple[str, ...], ConfigProblem] = {}
    for error in errors:
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConfigProblemsError):
            problems |= {problem.keys: problem for problem in cause.problems}
            continue
        problem = _describe_error(error, known)
        if problem.keys not in problems or len(error["loc"]) > len(problem.keys) + 1:
            problems[problem.keys] = problem
    # pydantic reports a list or a union as invalid too if one of its members is invalid
    paths = {keys[:length] for keys in problems for length in range(len(keys))}
    return [problem for keys, problem in problems.items() if keys not in paths]


def _describe_error(error: Mapping[str, Any], known: "Mapping[tuple[str, ...], set[str]]") -> ConfigProblem:
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    for union, message in _UNIONS.items():
        if path[:2] == union and error["type"] not in ("missing", "value_error"):
            return (
                ConfigProblem(union, message) if len(path) < 4 else _describe_plain(error, (*union, *path[3:]), known)
            )
        if path[:2] == union:
            path = (*union, *path[3:])
    return _describe_plain(error, path, known)


def _describe_plain(
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
        what = "unknown key" if "[key]" in error["loc"] else f"must be one of {', '.join(choices)}{_not(keys, value)}"
        return ConfigProblem(keys, what, suggest(str(value), choices))
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return ConfigProblem(keys, f"must be {words} {context[key]}{_not(keys, value)}")
    if kind == "string_pattern_mismatch":
        return ConfigProblem(keys, _PATTERNS.get(label, f"does not match {context['pattern']}") + _not(keys, value))
    if kind == "too_short":
        return ConfigProblem(keys, f"must have at least {context['min_length']} entries")
    if kind in ("string_too_short", "string_too_long"):
        limit = f"least {context['min_length']}" if kind == "string_too_short" else f"most {context['max_length']}"
        return ConfigProblem(keys, f"must have at {limit} characters{_not(keys, value)}")
    for begin, words in _KINDS.items():
        if kind.startswith(f"{begin}_"):
            remedy = f"write [{value}]" if words == "a list" and isinstance(value, str) else ""
            return ConfigProblem(keys, f"must be {words}{_not(keys, value)}", remedy)
    return ConfigProblem(keys, error["msg"].removeprefix("Value error, "))


def _not(keys: Sequence[str], value: object) -> str:
    """The invalid value as a part of a message, unless it is long or may be secret."""
    text = "nothing" if value is None else repr(value)
    return f", not {text}" if len(text) <= 60 and not set(keys) & set(_SECRET) else ""
