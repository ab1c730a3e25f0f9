"""Passwords written into an address of the config: hidden from everything that shows or stores the address.

A config may be stored by Prefect, MLflow, a release and a log, so it never holds such a password. ``hidden`` moves
it into the environment of this process, where the processes that this one starts find it, and leaves a ``${NAME}``.
"""

import hashlib
import os
import re
from urllib.parse import quote, unquote

from towline.errors import ConfigError

PREFIX = "_TOWLINE_SECRET_"  # not a setting, which would begin with TOWLINE_
_STARS = "***"
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_PASSWORD = re.compile(r"(://[^:/@?]*:)([^?]*)@", re.DOTALL)
_ODD_PASSWORD = re.compile(r"(://[^:/@?]*:)([^@]*)@", re.DOTALL)  # one that holds a question mark
_OPTION = re.compile(r"(?i)([?&;][^=&;?\s]*(?:pass|pwd|secret|token|key|credential|odbc_connect)[^=&;?\s]*=)([^&;\s]*)")


def mask_passwords(text: str) -> str:
    """A URL, or a text that holds one, without its passwords; a ``${NAME}`` stays, for it is none."""
    for pattern in (_PASSWORD, _ODD_PASSWORD):
        text = pattern.sub(lambda match: f"{match[1]}{_mask(match[2])}@", text)
    return _OPTION.sub(lambda match: f"{match[1]}{_mask(match[2])}", text)


def hide_passwords(url: str) -> str:
    """The URL with a ``${_TOWLINE_SECRET_…}`` in place of each literal password, whose value the environment now holds.

    The name is made of the URL without its passwords: the same in each process, and it tells nothing of the value.
    """
    name = f"{PREFIX}{hashlib.sha256(mask_passwords(url).encode()).hexdigest()[:12]}"
    password = _PASSWORD.search(url) or _ODD_PASSWORD.search(url)
    spans = [password.span(2)] if password else []
    spans += [match.span(2) for match in _OPTION.finditer(url) if not spans or match.start() >= spans[0][1]]
    for number, (start, end) in reversed(list(enumerate(spans))):
        value = url[start:end]
        if _mask(value) == _STARS and value != _STARS and f"${{{PREFIX}" not in value:
            variable = f"{name}_{number}"
            os.environ[variable] = unquote(value) if password and number == 0 else value
            url = f"{url[:start]}${{{variable}}}{url[end:]}"
    return url


def hide_path(begin: str, path: str) -> str:
    """The path of a webhook with a ``${_TOWLINE_SECRET_…}`` in place of what is literal in it; ``begin`` is its host.

    The whole path is the secret, so the name is a hash of it: two webhooks of one host have different names.
    """
    name = f"{PREFIX}{hashlib.sha256((begin + path).encode()).hexdigest()[:12]}"
    parts = _parts(path)
    for number, part in enumerate(parts):
        if part not in ("", "/", "?", _STARS) and not _REFERENCE.fullmatch(part):
            os.environ[f"{name}_{number}"] = part
            parts[number] = f"${{{name}_{number}}}"
    return "".join(parts)


def mask_path(path: str) -> str:
    """The path of a webhook without what is literal in it, or was; a ``${NAME}`` stays."""
    return "".join(part if part in ("/", "?") else _mask(part) for part in _parts(path))


def _parts(path: str) -> list[str]:
    """The texts before, between and in its references; the first separator is a text of its own."""
    return [path[:1], *re.split(r"(\$\{\w+\})", path[1:])] if path[:1] in ("/", "?") else [path]


def has_hidden_password(url: str) -> bool:
    """Whether a literal password was hidden in the URL."""
    return f"${{{PREFIX}" in url


def expand_variables(url: str) -> str:
    """The URL with each ``${NAME}`` replaced from the environment.

    Raises:
        ConfigError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        text = _value(match[1])
        # a user or a password stands before : or @ and may hold any character
        inside = match.start() > 0 and url[match.end() : match.end() + 1] in ("@", ":") and "@" in url[match.end() :]
        return quote(text, safe="") if inside else text

    return _REFERENCE.sub(value, url)


def _value(name: str) -> str:
    if name not in os.environ:
        if name.startswith(PREFIX):
            raise ConfigError(
                "the source URL was written with a literal password, which is known only to the process that read the "
                "config",
                where="data.source.url",
                remedy="write ${NAME} in place of the password, and set NAME in the environment of each process that "
                "runs the pipeline",
            )
        raise ConfigError(f"the environment variable {name} is not set", where="data.source.url", remedy="export it")
    value = os.environ[name]
    # a hidden password may itself hold references
    return _REFERENCE.sub(lambda match: _value(match[1]), value) if name.startswith(PREFIX) else value


def _mask(value: str) -> str:
    """The value itself where it is empty or one reference to a variable of the user's own, else stars."""
    reference = _REFERENCE.fullmatch(value)
    own = reference is not None and not reference[1].startswith(PREFIX)
    return value if own or not value else _STARS
