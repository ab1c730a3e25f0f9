"""Passwords in URLs of a config are moved to the environment, so that they are not stored with the config.

Prefect, MLflow, releases and logs store the config. ``hide_passwords`` replaces a literal password by ``${NAME}`` and
sets the variable NAME in the environment of this process, which child processes inherit.
"""

import hashlib
import os
import re
from urllib.parse import quote, unquote

from towline.errors import ConfigError

PREFIX = "_TOWLINE_SECRET_"  # not TOWLINE_, the prefix of settings
_MASK = "***"
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_PASSWORD = re.compile(r"(://[^:/@?]*:)([^?]*)@", re.DOTALL)
_PASSWORD_WITH_QUESTION_MARK = re.compile(r"(://[^:/@?]*:)([^@]*)@", re.DOTALL)
_OPTION = re.compile(
    r"(?i)([?&;][^=&;?\s]*(?:pass|pwd|secret|token|key|credential|odbc_connect|sig)[^=&;?\s]*=)([^&;\s]*)"
)
_WEB_OPTION = re.compile(r"([?&](?:[^=&?\s]*=)?)([^&\s]*)")  # any part of a query may sign a URL of the web


def mask_passwords(text: str) -> str:
    """A URL, or a text that contains one, with masked passwords; ``${NAME}`` is not masked."""
    for pattern in (_PASSWORD, _PASSWORD_WITH_QUESTION_MARK):
        text = pattern.sub(lambda match: f"{match[1]}{_mask(match[2])}@", text)
    return _options_of(text).sub(lambda match: f"{match[1]}{_mask(match[2])}", text)


def hide_passwords(url: str, place: str = "") -> str:
    """The URL with ``${_TOWLINE_SECRET_…}`` instead of each literal password; sets these environment variables.

    Of two URLs that differ in their passwords only, ``place`` is different. The name is a hash of the URL without its
    passwords: it is equal in all processes and does not depend on the value.
    """
    name = f"{PREFIX}{hashlib.sha256((mask_passwords(url) + place).encode()).hexdigest()[:12]}"
    password = _PASSWORD.search(url) or _PASSWORD_WITH_QUESTION_MARK.search(url)
    spans = [password.span(2)] if password else []
    spans += [match.span(2) for match in _options_of(url).finditer(url) if not spans or match.start() >= spans[0][1]]
    for number, (start, end) in reversed(list(enumerate(spans))):
        value = url[start:end]
        if _mask(value) == _MASK and value != _MASK and f"${{{PREFIX}" not in value:
            variable = f"{name}_{number}"
            os.environ[variable] = unquote(value) if password and number == 0 else value
            url = f"{url[:start]}${{{variable}}}{url[end:]}"
    return url


def _options_of(text: str) -> re.Pattern[str]:
    return _WEB_OPTION if re.match(r"https?://", text) else _OPTION


def hide_path(begin: str, path: str) -> str:
    """The path of a webhook with ``${_TOWLINE_SECRET_…}`` instead of its literal text; ``begin`` is its host.

    The whole path is secret, so the name is a hash of it: two webhooks of one host have different names.
    """
    name = f"{PREFIX}{hashlib.sha256((begin + path).encode()).hexdigest()[:12]}"
    parts = _split_references(path)
    for number, part in enumerate(parts):
        if part not in ("", "/", "?", _MASK) and not _REFERENCE.fullmatch(part):
            os.environ[f"{name}_{number}"] = part
            parts[number] = f"${{{name}_{number}}}"
    return "".join(parts)


def mask_path(path: str) -> str:
    """The path of a webhook with masked literal text and hidden values; other ``${NAME}`` are not masked."""
    return "".join(part if part in ("/", "?") else _mask(part) for part in _split_references(path))


def _split_references(path: str) -> list[str]:
    """The first separator, and the texts before, between and of the references."""
    return [path[:1], *re.split(r"(\$\{\w+\})", path[1:])] if path[:1] in ("/", "?") else [path]


def has_hidden_password(url: str) -> bool:
    """Whether a literal password was hidden in the URL."""
    return f"${{{PREFIX}" in url


def expand_variables(url: str, setting: str = "data.source.url") -> str:
    """The URL with each ``${NAME}`` replaced by the environment variable; ``setting`` names the URL in errors.

    Raises:
        ConfigError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        text = _value(match[1], setting)
        # a user or a password is followed by : or @ and may contain any character
        is_credential = (
            match.start() > 0 and url[match.end() : match.end() + 1] in ("@", ":") and "@" in url[match.end() :]
        )
        return quote(text, safe="") if is_credential else text

    return _REFERENCE.sub(value, url)


def _value(name: str, setting: str) -> str:
    if name not in os.environ:
        if name.startswith(PREFIX):
            raise ConfigError(
                "the source URL has a literal password, which is not passed to other processes",
                where=setting,
                remedy="write ${NAME} instead of the password, and set NAME in the environment of each process that "
                "runs the pipeline",
            )
        raise ConfigError(f"the environment variable {name} is not set", where=setting, remedy="export it")
    value = os.environ[name]
    # a hidden password may contain references
    return _REFERENCE.sub(lambda match: _value(match[1], setting), value) if name.startswith(PREFIX) else value


def _mask(value: str) -> str:
    """The value if it is empty or a reference to a variable of the user, else a mask."""
    reference = _REFERENCE.fullmatch(value)
    is_user_variable = reference is not None and not reference[1].startswith(PREFIX)
    return value if is_user_variable or not value else _MASK
