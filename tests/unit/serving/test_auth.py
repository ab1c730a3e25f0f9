import datetime as dt
import json
import logging
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from towline.api_keys import KeyFile, create_key, revoke_key
from towline.errors import ConfigError
from towline.serving import auth
from towline.serving.auth import ApiKeys


class Clock:
    """Replaces both clocks of the module."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.began = dt.datetime.now(dt.UTC).timestamp()

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return self.began + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


def file(store: Path) -> Path:
    return store / "serving" / "keys.json"


def test_a_key_grants_its_scopes(tmp_path: Path) -> None:
    """``admin`` includes ``predict``; an unknown text grants nothing."""
    caller, _ = create_key(tmp_path, "shop")
    operator, _ = create_key(tmp_path, "operator", ["admin"])
    known = ApiKeys(tmp_path)
    assert known.scopes(caller) == {"predict"}
    assert known.scopes(operator) == {"predict", "admin"}
    for wrong in ("", "tl_", "tl__", caller[:-1], caller + "x", caller.upper(), caller.replace("_", "-"), "\udc80é"):
        assert known.scopes(wrong) is None
    assert known.required


def test_a_secret_with_the_id_of_another_key_is_refused(tmp_path: Path) -> None:
    first, _ = create_key(tmp_path, "a")
    _, second = create_key(tmp_path, "b")
    assert ApiKeys(tmp_path).scopes(f"tl_{second.id}_{first.split('_', 2)[2]}") is None


def test_a_key_has_256_random_bits_and_only_its_digest_is_stored(tmp_path: Path) -> None:
    """The file can be read by its owner only."""
    text, key = create_key(tmp_path, "shop")
    secret = text.split("_", 2)[2]
    assert len(secret) >= 43  # 6 bits for each character
    for path in at_least_one(file(tmp_path).parent.iterdir()):
        assert secret not in path.read_text()
    assert stat.S_IMODE(file(tmp_path).stat().st_mode) == 0o600
    assert key.id in file(tmp_path).read_text()


def test_identity_returns_only_ids_of_stored_keys(tmp_path: Path) -> None:
    """A caller cannot write other text into the log."""
    text, key = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    assert known.identity(text) == key.id
    assert known.identity(f"tl_{'f' * 8}_x") == "unknown"
    assert known.identity("tl_\nERROR_x") == "unknown"


def test_a_revoked_key_is_refused_within_two_seconds(tmp_path: Path, clock: Clock) -> None:
    """A running service reads the changed file; other keys stay valid."""
    text, key = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    assert known.scopes(text)
    revoke_key(tmp_path, key.id)
    other, _ = create_key(tmp_path, "other")
    clock.passed += 1.9
    assert known.scopes(text) is None
    assert known.scopes(other) == {"predict"}
    assert known.required


def test_a_file_that_could_not_be_read_is_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is readable again without a change: the revoked key is refused. The fault is logged once."""
    text, key = create_key(tmp_path, "shop")
    known, read = ApiKeys(tmp_path), auth.read_keys
    revoke_key(tmp_path, key.id)

    def fail(store: Path) -> KeyFile:
        raise ConfigError("permission denied", where=str(store), remedy="make it readable")

    monkeypatch.setattr(auth, "read_keys", fail)
    for _ in range(3):
        clock.passed += 1
        assert known.scopes(text)
    monkeypatch.setattr(auth, "read_keys", read)
    clock.passed += 1
    assert known.scopes(text) is None
    assert len([record for record in caplog.records if "permission denied" in record.getMessage()]) == 1


def test_the_file_is_checked_at_most_twice_a_second(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    looks: list[int] = []
    look = known._stamp
    monkeypatch.setattr(known, "_stamp", lambda: looks.append(1) or look())
    for _ in range(1000):
        clock.passed += 0.01
        known.scopes(text)
    assert 15 <= len(looks) <= 20


def test_a_key_expires_at_its_time(tmp_path: Path, clock: Clock) -> None:
    text, key = create_key(tmp_path, "shop", lifetime=dt.timedelta(hours=1))
    known = ApiKeys(tmp_path)
    clock.passed = 3590
    assert known.scopes(text) == {"predict"}
    clock.passed = 3601
    assert known.scopes(text) is None
    assert key.state(key.created + dt.timedelta(hours=2)) == "expired"


def test_a_key_is_required_once_one_was_created(tmp_path: Path, clock: Clock) -> None:
    """Also when all keys are revoked."""
    known = ApiKeys(tmp_path)
    assert not known.required
    _, key = create_key(tmp_path, "shop")
    clock.passed += 1
    assert known.required
    revoke_key(tmp_path, key.id)
    clock.passed += 1
    assert known.required


@pytest.mark.parametrize("content", ['{"format": 1, "keys": []}', '{"format": 1}', "{}"])
def test_a_key_file_without_keys_refuses_all_requests(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """The log names the remedy, and the remedy works."""
    text, _ = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    file(tmp_path).write_text(content)
    clock.passed += 1
    with caplog.at_level(logging.ERROR, "towline.serving"):
        assert known.required
        assert known.scopes(text) is None
    assert "towline keys create" in caplog.text
    assert ApiKeys(tmp_path).required
    other, _ = create_key(tmp_path, "other")
    clock.passed += 1
    assert known.scopes(other) == {"predict"}
    assert known.required


def test_an_empty_file_closes_a_service_without_keys(tmp_path: Path, clock: Clock) -> None:
    known = ApiKeys(tmp_path)
    assert not known.required
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_text('{"format": 1, "keys": []}')
    clock.passed += 1
    assert known.required


@pytest.mark.parametrize("content", ["", "{", "null", '{"format": 2}', '{"format": 1, "keys": [{"id": "x"}]}', None])
def test_with_a_damaged_file_the_last_valid_keys_are_used(
    tmp_path: Path, clock: Clock, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be truncated, missing or have another format. The log reports it once; a repaired file is read again."""
    text, _ = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    good = file(tmp_path).read_bytes()
    file(tmp_path).unlink() if content is None else file(tmp_path).write_text(content)
    with caplog.at_level(logging.INFO, "towline.serving"):
        for _ in range(5):
            clock.passed += 1
            assert known.scopes(text) == {"predict"}
            assert known.required
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "stay in force" in caplog.text
    file(tmp_path).write_bytes(good)
    other, _ = create_key(tmp_path, "other")
    clock.passed += 1
    assert known.scopes(other) == {"predict"}


def test_a_service_does_not_start_with_damaged_keys(tmp_path: Path) -> None:
    """A new key does not replace the damaged file."""
    create_key(tmp_path, "shop")
    file(tmp_path).write_text("{")
    for use in (lambda: ApiKeys(tmp_path), lambda: create_key(tmp_path, "other"), lambda: revoke_key(tmp_path, "0")):
        with pytest.raises(ConfigError, match="damaged") as error:
            use()
        assert error.value.where == str(file(tmp_path))
    assert file(tmp_path).read_text() == "{"


def test_keys_created_concurrently_are_all_stored(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_key(tmp_path, f"caller {number}"), range(16)))
    known = ApiKeys(tmp_path)
    assert all(known.scopes(text) for text, _ in made)
    assert len({key.id for _, key in made}) == 16


def test_the_commands_create_list_and_revoke_a_key(store: Path, command: Callable[..., CommandResult]) -> None:
    """``create`` prints the key once, on stdout only."""
    made = command("keys", "create", "shop", "--scope", "predict", "--expires", "90d")
    assert made.code == 0
    text = made.out.strip()
    assert ApiKeys(store).scopes(text) == {"predict"}
    assert text not in made.err
    rows = command("keys", "list", "--json").json
    assert [(row["name"], row["scopes"], row["state"]) for row in rows] == [("shop", ["predict"], "valid")]
    assert "sha256" not in rows[0]
    lasts = dt.datetime.fromisoformat(rows[0]["expires"]) - dt.datetime.fromisoformat(rows[0]["created"])
    assert lasts == dt.timedelta(days=90)
    listing = command("keys", "list").out
    assert rows[0]["id"] in listing
    assert text.split("_", 2)[2] not in listing
    assert command("keys", "revoke", rows[0]["id"]).code == 0
    assert command("keys", "revoke", rows[0]["id"], "--json").json["state"] == "revoked"
    assert command("keys", "list", "--json").json[0]["state"] == "revoked"
    assert ApiKeys(store).scopes(text) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "shop", "--expires", "tomorrow"), "not a duration"),
        (("create", "shop", "--expires", "0d"), "not a positive duration"),
        (("create", "shop", "--expires", f"{10**15}d"), "--expires"),
        (("create", "shop", "--expires", "99999999d"), "--expires"),
        (("create", "shop", "--scope", "root"), "'root'"),
        (("create", " "), "name"),
        (("create", "x" * 101), "name"),
        (("revoke", "12345678"), "no key"),
    ],
)
def test_invalid_commands_have_an_error_and_write_no_file(
    store: Path, command: Callable[..., CommandResult], words: tuple[str, ...], message: str
) -> None:
    """The exit code is 2."""
    result = command("keys", *words, "--json")
    assert result.code == 2
    assert message in json.dumps(result.json)
    assert not file(store).exists()
