"""Seals sign the ledger's rows with a key outside its database; an anchor remembers the last row of a model.

A person with write access to the database, but without the key, cannot change or add a row undetected: the chain
and the seals show it. Rows removed from the end are missed by the anchor, a signed file in the store.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from towline import files
from towline.config import Frozen, Settings
from towline.errors import ConfigError, ReleaseError

_KEY_BYTES = 32
ACCEPT = "if the change was intended, such as a restored backup: towline verify {model} --accept --reason '...'"


class Seal(NamedTuple):
    """The signature of a row: the id of the key, and an HMAC."""

    key: str
    mac: str


class SealedRow(NamedTuple):
    """The part of a row that a seal signs; its digest covers all other fields and, by the chain, all earlier rows."""

    model: str
    seq: int
    hash: str


class LedgerKey:
    """A secret key; ``id`` does not reveal it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.id = hashlib.sha256(b"towline ledger key\0" + secret).hexdigest()[:16]

    def mac(self, *parts: object) -> str:
        """The HMAC-SHA256 of a list of texts and numbers."""
        return hmac.digest(self._secret, json.dumps(parts).encode(), "sha256").hex()

    def seal(self, row: SealedRow) -> Seal:
        return Seal(self.id, self.mac("row", *row))

    def is_valid(self, seal: Seal, row: SealedRow) -> bool:
        return seal.key == self.id and hmac.compare_digest(seal.mac, self.mac("row", *row))


class Anchor(Frozen):
    """The last row of a model that this store has written or verified.

    Attributes:
        model: its name.
        seq, hash: of the row; 0 and empty before the first row.
        since: number of the first row that has a seal.
        key, mac: the signature.
    """

    model: str
    seq: int = Field(ge=0)
    hash: str
    since: int = Field(ge=1)
    key: str
    mac: str = ""

    def content(self) -> tuple[object, ...]:
        return "anchor", self.model, self.seq, self.hash, self.since


class Seals:
    """The key and the anchors of a store.

    Args:
        key_file: holds the key, as 64 hexadecimal digits.
        anchors: folder of the anchors.
        creates_key: whether the first row written creates the key; otherwise rows have no seals until a key exists.
    """

    def __init__(self, key_file: Path, anchors: Path, *, creates_key: bool) -> None:
        self.key_file, self._anchors, self._creates_key = key_file, anchors, creates_key

    def key(self) -> LedgerKey | None:
        """The key; None if there is no file.

        Raises:
            ConfigError: the file cannot be read, or does not hold a key.
        """
        try:
            secret = bytes.fromhex(self.key_file.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        except OSError as error:
            what, remedy = (
                f"cannot be read: {error.strerror}",
                "make it readable for the user of this process (mode 0600)",
            )
        except ValueError:
            what, remedy = "does not hold a key", "restore it from a backup"
        else:
            if len(secret) == _KEY_BYTES:
                return LedgerKey(secret)
            what, remedy = "does not hold a key of 64 hexadecimal digits", "restore it from a backup"
        raise ConfigError(f"the ledger's key {what}", where=str(self.key_file), remedy=remedy)

    def create_key(self) -> LedgerKey:
        """Creates the key, unless another process has just done so."""
        with files.exclusive_lock(self.key_file.with_name(f".{self.key_file.name}.lock")):
            if (key := self.key()) is None:
                key = LedgerKey(secret := secrets.token_bytes(_KEY_BYTES))
                files.write(self.key_file, f"{secret.hex()}\n", mode=0o600)
        return key

    def signing_key(self, model: str, sealed_with: Collection[str]) -> LedgerKey | None:
        """The key for the next row; None if rows of this ledger are not sealed.

        Args:
            model: its name.
            sealed_with: ids of the keys that the next row may be sealed with; empty if the ledger has no seals.

        Raises:
            ConfigError: the ledger is sealed with a key that is not here.
        """
        key = self.key()
        if key is None and not sealed_with and self._creates_key:
            return self.create_key()
        if sealed_with and (key is None or key.id not in sealed_with):
            here = f"the key here is {key.id}" if key else "there is no key here"
            accept = f"towline verify {model} --accept --reason 'the key was lost'"
            raise ConfigError(
                f"the ledger is sealed with the key {min(sealed_with)}, and {here}",
                where=str(self.key_file),
                remedy="copy the key's file from the machine that has it, or name it in TOWLINE_LEDGER_KEY; "
                f"if it is lost: {accept}",
            )
        return key

    def anchor(self, model: str) -> Anchor | None:
        """The anchor of a model; None if it does not exist.

        Raises:
            ReleaseError: its file was changed.
        """
        path = self._path(model)
        try:
            anchor = Anchor.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            anchor = None
        key = self.key()
        valid = anchor is not None and anchor.model == model
        if anchor is None or not valid or (key and not hmac.compare_digest(anchor.mac, key.mac(*anchor.content()))):
            raise ReleaseError(
                f"the anchor of {model} is damaged, or was signed with another key",
                where=str(path),
                remedy="restore the key and the anchor; " + ACCEPT.format(model=model),
            )
        return anchor

    def anchored_models(self) -> list[str]:
        """Names of the models that have an anchor."""
        return sorted(path.stem for path in self._anchors.glob("*.json") if not path.name.startswith("."))

    def advance(self, row: SealedRow, key: LedgerKey, *, since: int, reset: bool = False) -> None:
        """Moves the anchor of a model forward to a row.

        Args:
            row: the row.
            key: signs the anchor.
            since: number of the first row with a seal, if there is no anchor yet.
            reset: replace an anchor that is damaged, or further on.
        """
        with files.exclusive_lock(self._anchors / f".{row.model}.lock"):
            anchor = None if reset else self.anchor(row.model)
            if anchor is not None and anchor.seq >= row.seq:
                return
            draft = Anchor(
                model=row.model, seq=row.seq, hash=row.hash, since=anchor.since if anchor else since, key=key.id
            )
            signed = draft.model_copy(update={"mac": key.mac(*draft.content())})
            files.write(self._path(row.model), signed.model_dump_json() + "\n", mode=0o600)

    def remove_anchor(self, model: str) -> None:
        """Removes the anchor of a model, e.g. of one that is no longer in the ledger."""
        self._path(model).unlink(missing_ok=True)

    def _path(self, model: str) -> Path:
        return self._anchors / f"{model}.json"


def open_seals(settings: Settings) -> Seals:
    """The key and the anchors that the settings name.

    The key is created automatically only for a ledger in a file: with a database server, several stores may write to
    the ledger, and all of them need the same key.
    """
    layout = settings.layout
    creates = settings.ledger_url.startswith("sqlite")
    return Seals(settings.ledger_key or layout.ledger_key, layout.ledger_anchors, creates_key=creates)


def check_anchor(model: str, anchor: Anchor | None, hashes: Sequence[str]) -> None:
    """Compares the digests of a model's rows, oldest first, with its anchor, which was read before them.

    Raises:
        ReleaseError: rows were removed from the end, or replaced.
    """
    if anchor is None or (len(hashes) >= anchor.seq and ["", *hashes][anchor.seq] == anchor.hash):
        return
    lost = anchor.seq - len(hashes)
    what = f"the last {lost} rows were removed" if lost > 0 else f"row {anchor.seq} is another one than was written"
    raise ReleaseError(
        f"the ledger of {model} was changed: {what}",
        where=f"{model}, row {anchor.seq}",
        remedy="restore the ledger from a backup; " + ACCEPT.format(model=model),
    )
