"""A profile names the Prefect server and the work pool for remote runs; it is a dotenv file in the project."""

import re
from pathlib import Path
from typing import NoReturn

from towline.config import Frozen, Settings
from towline.config.record import suggest
from towline.errors import ConfigError

REMOTE = ("run", "drift", "quality")  # a worker runs them
LOCAL = ("backtest", "config", "loadtest", "validate")  # they need no store
_KNOWN = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "TOWLINE_POOL")
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(?:\"([^\"]*)\"|'([^']*)'|([^\"'].*?|))(?:\s+#.*)?")


class Profile(Frozen):
    """Where the runs of a profile go.

    Attributes:
        name: the given name.
        url: of Prefect's API.
        auth: ``user:password`` of that API, or empty.
        pool: the work pool.
    """

    name: str
    url: str
    auth: str = ""
    pool: str = "towline"


def check(name: str, command: str | None) -> None:
    """Checks that a command can be used with a profile.

    Raises:
        ConfigError: the command needs the store, which is on the workers' machines.
    """
    if command is None or command in (*REMOTE, *LOCAL, "score"):  # score checks its own options
        return
    refuse(name, command)


def refuse(name: str, command: str) -> NoReturn:
    """Refuses a command that needs the store.

    Raises:
        ConfigError: always.
    """
    inside = f"docker compose exec worker towline {command}" if name == "compose" else f"towline {command} on a worker"
    raise ConfigError(
        f"`towline {command}` needs the store, which is on the workers' machines",
        where=f"--profile {name}",
        remedy=f"run it there: {inside}; for the store of this machine use no profile",
    )


def read(name: str, settings: Settings) -> Profile:
    """The profile ``profiles/NAME.env`` of the project; ``compose`` may also be the ``.env`` of docker-compose.yml.

    Raises:
        ConfigError: there is no such file, a line is not valid, or a variable is missing or unknown.
    """
    file = settings.project / "profiles" / f"{name}.env"
    if name == "compose" and not file.exists():
        return _compose(settings.project / ".env")
    known = sorted({"compose", *(path.stem for path in file.parent.glob("*.env"))})
    if not re.fullmatch(r"[\w.-]+", name) or not file.is_file():
        raise ConfigError(f"no profile {name!r}", where=str(file), remedy=suggest(name, known))
    values = parse(file)
    for unknown in sorted(values.keys() - set(_KNOWN)):
        raise ConfigError(f"unknown variable {unknown}", where=str(file), remedy=suggest(unknown, _KNOWN))
    url = _required(values, "PREFECT_API_URL", file, "http://HOST:4200/api").rstrip("/")
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?/api", url):
        raise ConfigError(
            f"PREFECT_API_URL is not an address of Prefect's API: {url!r}",
            where=str(file),
            remedy="http://HOST:4200/api",
        )
    auth, pool = values.get("PREFECT_API_AUTH_STRING", ""), values.get("TOWLINE_POOL", "towline")
    return Profile(name=name, url=url, auth=auth, pool=pool)


def _compose(file: Path) -> Profile:
    if not file.is_file():
        raise ConfigError("the stack has no .env file", where=str(file), remedy="cp .env.example .env, then fill it in")
    values = parse(file)
    auth = _required(values, "PREFECT_AUTH_STRING", file, "user:password")
    port = values.get("PREFECT_PORT") or "4200"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"PREFECT_PORT is not a port: {port!r}", where=str(file), remedy="a number, such as 4200")
    return Profile(name="compose", url=f"http://127.0.0.1:{port}/api", auth=auth)


def parse(file: Path) -> dict[str, str]:
    """The variables of a dotenv file: lines ``NAME=value``, with or without quotes, and comments after #.

    Raises:
        ConfigError: names the line that is not valid or repeats a variable.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), remedy="give a UTF-8 text file") from None
    values: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:  # the line is not shown: it may be a secret
            raise ConfigError("not a line of a dotenv file", where=f"{file}:{number}", remedy="write NAME=value")
        if match[1] in values:
            raise ConfigError(f"{match[1]} is repeated", where=f"{file}:{number}", remedy="remove one of the lines")
        values[match[1]] = next(value for value in (*match.groups()[1:], "") if value is not None)
    return values


def _required(values: dict[str, str], name: str, file: Path, example: str) -> str:
    if not values.get(name):
        raise ConfigError(f"{name} is not set", where=str(file), remedy=f"add the line {name}={example}")
    return values[name]
