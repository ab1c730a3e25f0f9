"""API keys: made and revoked by a command, held as digests in one file, seen by a running service within seconds."""

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
_EVERY = 0.5  # seconds between two looks at the file
_BYTES = 32  # of randomness in a key
_LONGEST = 100  # characters of a key, and more


class Key(Frozen):
    """What is kept of a key: enough to know it again, not to make it."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=100)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: dt.datetime
    expires: dt.datetime | None = None
    revoked: dt.datetime | None = None

    def state(self, now: dt.datetime) -> str:
        """valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class Keyring(Frozen):
    """The file. A key stays in it when it is revoked: having had keys, a service is never open again."""

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def read(store: Path) -> Keyring:
    """The keys of a store; none where none was ever made.

    Raises:
        ConfigError: the file is damaged or may not be read.
    """
    path = _path(store)
    try:
        return Keyring.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Keyring()
    except OSError as error:
        what, remedy = f"cannot read the keys: {error.strerror}", "let the service's user read the file (mode 0600)"
    except ValidationError:
        what = "the keys are damaged"
        remedy = "restore the file from a backup, or move it away and make new keys"
    raise ConfigError(what, where=str(path), remedy=remedy)


def create(
    store: Path, name: str, scopes: Sequence[Scope] = ("predict",), lifetime: dt.timedelta | None = None
) -> tuple[str, Key]:
    """Makes a key and returns its text, which is kept nowhere, beside what is.

    Raises:
        ConfigError: the keys there are damaged, the name is empty or too long, or the lifetime is.
        TransientError: the store cannot be written.
    """
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    with files.exclusive_lock(_path(store).with_suffix(".lock")):
        ring = read(store)
        number = next(one for one in iter(lambda: secrets.token_hex(4), "") if one not in {key.id for key in ring.keys})
        text = f"tl_{number}_{secrets.token_urlsafe(_BYTES)}"
        try:
            key = Key(
                id=number,
                name=name.strip(),
                scopes=tuple(scope for scope in SCOPES if scope in scopes),
                sha256=_digest(text),
                created=now,
                expires=now + lifetime if lifetime is not None else None,
            )
        except OverflowError:
            raise ConfigError("that is too long", where="--expires", remedy="write e.g. --expires 90d") from None
        except ValidationError as invalid:
            first = invalid.errors(include_url=False)[0]
            raise ConfigError(
                f"a key's {first['loc'][0]}: {first['msg']}",
                where="command line",
                remedy="name who will hold the key, in at most 100 characters",
            ) from None
        _write(store, (*ring.keys, key))
    return text, key


def revoke(store: Path, number: str) -> Key:
    """Ends a key for good; one that is revoked already stays as it is.

    Raises:
        ConfigError: there is no such key.
        TransientError: the store cannot be written.
    """
    with files.exclusive_lock(_path(store).with_suffix(".lock")):
        ring = read(store)
        key = next((key for key in ring.keys if key.id == number), None)
        if key is None:
            there = ", ".join(f"{key.id} ({key.name})" for key in ring.keys)
            remedy = f"there are: {there}" if there else "there are none yet: towline keys create NAME makes one"
            raise ConfigError(f"no key {number[:20]!r}", where=str(_path(store)), remedy=remedy)
        if key.revoked is None:
            revoked = key.model_copy(update={"revoked": dt.datetime.now(dt.UTC).replace(microsecond=0)})
            _write(store, tuple(revoked if one.id == number else one for one in ring.keys))
            return revoked
        return key


class Keys:
    """The keys of a store as a running service knows them. A change of the file is seen within a second.

    While the file is damaged or gone the keys read last hold. A file without any key lets nobody in: the command never
    writes one, and who emptied it did not mean to let everybody in.

    Raises:
        ConfigError: the file is damaged when the service starts.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._required = False
        self._seen = self._stamp()
        self._take(read(store))
        self._next = time.monotonic() + _EVERY

    @property
    def required(self) -> bool:
        """Whether callers must present a key: once there was a file of keys, for ever."""
        self.refresh()
        return self._required

    def scopes(self, presented: str) -> frozenset[str] | None:
        """What the bearer may do (admin may predict too); None for a key that is unknown, expired or revoked."""
        self.refresh()
        if len(presented) > _LONGEST:
            return None
        key = self._keys.get(_number(presented), _NOBODY)
        if not hmac.compare_digest(_digest(presented), key.sha256) or key.revoked is not None:
            return None
        if key.expires is not None and key.expires.timestamp() <= time.time():
            return None
        return _GRANTED["admin" if "admin" in key.scopes else "predict"]

    def identity(self, presented: str) -> str:
        """The public part of a key that is in the file, for limits and logs; ``unknown`` for any other text."""
        number = _number(presented)
        return number if number in self._keys else "unknown"

    def refresh(self) -> None:
        """Reads the file again if it has changed; looks at most twice a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        if stamp is None:
            _LOG.error("the keys are gone (%s): those read before stay in force", _path(self._store))
            return
        try:
            self._take(read(self._store))
        except ConfigError as error:
            _LOG.error("%s (%s): those read before stay in force", error.what, error.where)

    def _take(self, ring: Keyring) -> None:
        self._keys = {key.id: key for key in ring.keys}
        self._required |= bool(ring.keys) or self._seen is not None
        if self._required and not ring.keys:
            _LOG.error(
                "%s holds no key: nobody is let in until `towline keys create NAME` makes one", _path(self._store)
            )

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = _path(self._store).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


_GRANTED = {"predict": frozenset({"predict"}), "admin": frozenset({"predict", "admin"})}
# what an unknown key is compared with: the same work as for a known one
_NOBODY = Key(
    id="0" * 8, name="nobody", scopes=("predict",), sha256="0" * 64, created=dt.datetime.fromtimestamp(0, dt.UTC)
)


def _number(presented: str) -> str:
    parts = presented.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "tl" else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _path(store: Path) -> Path:
    return StoreLayout(store).api_keys


def _write(store: Path, keys: tuple[Key, ...]) -> None:
    files.write(_path(store), Keyring(keys=keys).model_dump_json(indent=1) + "\n", mode=0o600)
