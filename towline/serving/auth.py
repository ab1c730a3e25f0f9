"""API keys: created and revoked with ``towline keys``, and stored as SHA-256 digests in ``serving/keys.json``.

A running service reads the file again when it changes.
"""

import datetime as dt
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError
from towline.store import StoreLayout

Scope = Literal["predict", "admin"]
SCOPES: tuple[Scope, ...] = ("predict", "admin")

_LOG = logging.getLogger("towline.serving")
_CHECK_INTERVAL_S = 0.5  # between two checks of the file
_KEY_BYTES = 32  # of random data in a key
_MAX_KEY_LENGTH = 100  # characters; a key is shorter


class ApiKey(Frozen):
    """A stored key: its digest, from which the key cannot be derived."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=100)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: dt.datetime
    expires: dt.datetime | None = None
    revoked: dt.datetime | None = None

    def state(self, now: dt.datetime) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class KeyFile(Frozen):
    """The content of ``keys.json``. Revoked keys stay in it, so that a service that had keys is never open again."""

    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def read_keys(store: Path) -> KeyFile:
    """Reads the keys of a store; empty if none was ever created.

    Raises:
        ConfigError: the file is damaged or cannot be read.
    """
    path = _path(store)
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return KeyFile()
    except OSError as error:
        what, remedy = (
            f"cannot read the keys: {error.strerror}",
            "make the file readable for the user of the service (mode 0600)",
        )
    except ValidationError:
        what = "the keys are damaged"
        remedy = "restore the file from a backup, or move it away and create new keys"
    raise ConfigError(what, where=str(path), remedy=remedy)


def create_key(
    store: Path, name: str, scopes: Sequence[Scope] = ("predict",), lifetime: dt.timedelta | None = None
) -> tuple[str, ApiKey]:
    """Creates a key.

    Returns:
        The text of the key, which is not stored, and its stored record.

    Raises:
        ConfigError: the key file is damaged, the name is empty or too long, or the lifetime is too long.
        TransientError: the store cannot be written.
    """
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    with files.exclusive_lock(_path(store).with_suffix(".lock")):
        stored = read_keys(store)
        ids = {key.id for key in stored.keys}
        key_id = next(drawn for drawn in iter(lambda: secrets.token_hex(4), "") if drawn not in ids)
        text = f"tl_{key_id}_{secrets.token_urlsafe(_KEY_BYTES)}"
        try:
            key = ApiKey(
                id=key_id,
                name=name.strip(),
                scopes=tuple(scope for scope in SCOPES if scope in scopes),
                sha256=_digest(text),
                created=now,
                expires=now + lifetime if lifetime is not None else None,
            )
        except OverflowError:
            raise ConfigError(
                "the lifetime is too long", where="--expires", remedy="write e.g. --expires 90d"
            ) from None
        except ValidationError as invalid:
            first = invalid.errors(include_url=False)[0]
            raise ConfigError(
                f"a key's {first['loc'][0]}: {first['msg']}",
                where="command line",
                remedy="name the holder of the key in at most 100 characters",
            ) from None
        _write(store, (*stored.keys, key))
    return text, key


def revoke_key(store: Path, key_id: str) -> ApiKey:
    """Revokes a key permanently; a revoked key is not changed.

    Raises:
        ConfigError: there is no such key.
        TransientError: the store cannot be written.
    """
    with files.exclusive_lock(_path(store).with_suffix(".lock")):
        stored = read_keys(store)
        key = next((key for key in stored.keys if key.id == key_id), None)
        if key is None:
            known = ", ".join(f"{key.id} ({key.name})" for key in stored.keys)
            remedy = f"keys: {known}" if known else "there are no keys yet: create one with `towline keys create NAME`"
            raise ConfigError(f"no key {key_id[:20]!r}", where=str(_path(store)), remedy=remedy)
        if key.revoked is None:
            revoked = key.model_copy(update={"revoked": dt.datetime.now(dt.UTC).replace(microsecond=0)})
            _write(store, tuple(revoked if entry.id == key_id else entry for entry in stored.keys))
            return revoked
        return key


class ApiKeys:
    """The keys of a running service. It reads the file again within a second after a change.

    While the file is damaged or missing, the last valid keys stay in force. A file without any key admits nobody.

    Raises:
        ConfigError: the file is damaged when the service starts.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._required = False
        self._stamp_read = self._stamp()
        self._set_keys(read_keys(store))
        self._next = time.monotonic() + _CHECK_INTERVAL_S

    @property
    def required(self) -> bool:
        """Whether requests need a key: always, once a key file existed."""
        self.refresh()
        return self._required

    def scopes(self, presented: str) -> frozenset[str] | None:
        """The scopes of a key (admin includes predict); None if it is unknown, expired or revoked."""
        self.refresh()
        if len(presented) > _MAX_KEY_LENGTH:
            return None
        key = self._keys.get(_key_id(presented), _UNKNOWN_KEY)
        if not hmac.compare_digest(_digest(presented), key.sha256) or key.revoked is not None:
            return None
        if key.expires is not None and key.expires.timestamp() <= time.time():
            return None
        return _GRANTED_SCOPES["admin" if "admin" in key.scopes else "predict"]

    def identity(self, presented: str) -> str:
        """The id of a stored key, for rate limits and logs; ``unknown`` for any other text."""
        key_id = _key_id(presented)
        return key_id if key_id in self._keys else "unknown"

    def refresh(self) -> None:
        """Reads the file again if it has changed; checks at most twice a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _CHECK_INTERVAL_S
        stamp = self._stamp()
        if stamp == self._stamp_read:
            return
        self._stamp_read = stamp
        if stamp is None:
            _LOG.error("the key file is missing (%s): the keys read last stay in force", _path(self._store))
            return
        try:
            self._set_keys(read_keys(self._store))
        except ConfigError as error:
            _LOG.error("%s (%s): the keys read last stay in force", error.what, error.where)

    def _set_keys(self, stored: KeyFile) -> None:
        self._keys = {key.id: key for key in stored.keys}
        self._required |= bool(stored.keys) or self._stamp_read is not None
        if self._required and not stored.keys:
            _LOG.error(
                "%s holds no key: all requests are refused until you run `towline keys create NAME`", _path(self._store)
            )

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = _path(self._store).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


_GRANTED_SCOPES = {"predict": frozenset({"predict"}), "admin": frozenset({"predict", "admin"})}
# an unknown key is compared with this record, so that it takes as long as a known one
_UNKNOWN_KEY = ApiKey(
    id="0" * 8, name="nobody", scopes=("predict",), sha256="0" * 64, created=dt.datetime.fromtimestamp(0, dt.UTC)
)


def _key_id(presented: str) -> str:
    parts = presented.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "tl" else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _path(store: Path) -> Path:
    return StoreLayout(store).api_keys


def _write(store: Path, keys: tuple[ApiKey, ...]) -> None:
    files.write(_path(store), KeyFile(keys=keys).model_dump_json(indent=1) + "\n", mode=0o600)
