"""API keys: created and revoked with ``towline keys``, and stored as SHA-256 digests in ``serving/keys.json``.

Services check the keys of requests (``serving/auth.py``), approvals those of approvers.
"""

import datetime as dt
import hashlib
import hmac
import secrets
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
MAX_KEY_LENGTH = 100  # characters; a key is shorter
_KEY_BYTES = 32  # of random data in a key


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
    path = key_file(store)
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
    with files.exclusive_lock(key_file(store).with_suffix(".lock")):
        stored = read_keys(store)
        ids = {key.id for key in stored.keys}
        key_id = next(drawn for drawn in iter(lambda: secrets.token_hex(4), "") if drawn not in ids)
        text = f"tl_{key_id}_{secrets.token_urlsafe(_KEY_BYTES)}"
        try:
            key = ApiKey(
                id=key_id,
                name=name.strip(),
                scopes=tuple(scope for scope in SCOPES if scope in scopes),
                sha256=key_digest(text),
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
    with files.exclusive_lock(key_file(store).with_suffix(".lock")):
        stored = read_keys(store)
        key = next((key for key in stored.keys if key.id == key_id), None)
        if key is None:
            known = ", ".join(f"{key.id} ({key.name})" for key in stored.keys)
            remedy = f"keys: {known}" if known else "there are no keys yet: create one with `towline keys create NAME`"
            raise ConfigError(f"no key {key_id[:20]!r}", where=str(key_file(store)), remedy=remedy)
        if key.revoked is None:
            revoked = key.model_copy(update={"revoked": dt.datetime.now(dt.UTC).replace(microsecond=0)})
            _write(store, tuple(revoked if entry.id == key_id else entry for entry in stored.keys))
            return revoked
        return key


def find_valid_key(store: Path, presented: str, now: dt.datetime) -> ApiKey | None:
    """The stored record of a key; None if it is unknown, expired or revoked.

    Raises:
        ConfigError: the file is damaged or cannot be read.
    """
    if len(presented) > MAX_KEY_LENGTH:
        return None
    keys = {key.id: key for key in read_keys(store).keys}
    key = keys.get(key_id(presented))
    if key is None or not hmac.compare_digest(key_digest(presented), key.sha256) or key.state(now) != "valid":
        return None
    return key


def key_id(presented: str) -> str:
    """The id in the text of a key; empty for any other text."""
    parts = presented.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "tl" else ""


def key_digest(text: str) -> str:
    """The digest that is stored of a key."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def key_file(store: Path) -> Path:
    """The file with the keys of a store."""
    return StoreLayout(store).api_keys


def _write(store: Path, keys: tuple[ApiKey, ...]) -> None:
    files.write(key_file(store), KeyFile(keys=keys).model_dump_json(indent=1) + "\n", mode=0o600)
