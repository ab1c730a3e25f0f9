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
from towline.errors import ConfigError
from towline.serving import auth
from towline.serving.auth import ApiKeys, create_key, revoke_key


class Clock:
    """Stands in for both clocks of the module."""

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


def test_a_key_opens_what_its_scope_allows(tmp_path: Path) -> None:
    """predict is predict alone, admin is both, and any other text is nobody."""
    caller, _ = create_key(tmp_path, "shop")
    operator, _ = create_key(tmp_path, "operator", ["admin"])
    known = ApiKeys(tmp_path)
    assert known.scopes(caller) == {"predict"}
    assert known.scopes(operator) == {"predict", "admin"}
    for wrong in ("", "tl_", "tl__", caller[:-1], caller + "x", caller.upper(), caller.replace("_", "-"), "\udc80é"):
        assert known.scopes(wrong) is None
    assert known.required


def test_the_right_secret_under_another_id_is_refused(tmp_path: Path) -> None:
    """The two halves of a key belong together."""
    first, _ = create_key(tmp_path, "a")
    _, second = create_key(tmp_path, "b")
    assert ApiKeys(tmp_path).scopes(f"tl_{second.id}_{first.split('_', 2)[2]}") is None


def test_a_key_holds_256_bits_and_is_kept_nowhere(tmp_path: Path) -> None:
    """What is stored is a digest, in a file its owner alone can read."""
    text, key = create_key(tmp_path, "shop")
    secret = text.split("_", 2)[2]
    assert len(secret) >= 43  # 6 bits a character
    for path in at_least_one(file(tmp_path).parent.iterdir()):
        assert secret not in path.read_text()
    assert stat.S_IMODE(file(tmp_path).stat().st_mode) == 0o600
    assert key.id in file(tmp_path).read_text()


def test_the_public_part_is_told_only_of_keys_that_exist(tmp_path: Path) -> None:
    """A caller cannot write a text of his own into the log."""
    text, key = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    assert known.identity(text) == key.id
    assert known.identity(f"tl_{'f' * 8}_x") == "unknown"
    assert known.identity("tl_\nERROR_x") == "unknown"


def test_a_revoked_key_is_refused_within_two_seconds(tmp_path: Path, clock: Clock) -> None:
    """A running service reads the file again, as it does for a new key; one that was there keeps working."""
    text, key = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    assert known.scopes(text)
    revoke_key(tmp_path, key.id)
    other, _ = create_key(tmp_path, "other")
    clock.passed += 1.9
    assert known.scopes(text) is None
    assert known.scopes(other) == {"predict"}
    assert known.required


def test_the_file_is_looked_at_twice_a_second_at_most(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests do not pay for the file system."""
    text, _ = create_key(tmp_path, "shop")
    known = ApiKeys(tmp_path)
    looks: list[int] = []
    look = known._stamp
    monkeypatch.setattr(known, "_stamp", lambda: looks.append(1) or look())
    for _ in range(1000):
        clock.passed += 0.01
        known.scopes(text)
    assert 15 <= len(looks) <= 20


def test_a_key_expires(tmp_path: Path, clock: Clock) -> None:
    """At its time, without anything being written."""
    text, key = create_key(tmp_path, "shop", lifetime=dt.timedelta(hours=1))
    known = ApiKeys(tmp_path)
    clock.passed = 3590
    assert known.scopes(text) == {"predict"}
    clock.passed = 3601
    assert known.scopes(text) is None
    assert key.state(key.created + dt.timedelta(hours=2)) == "expired"


def test_without_keys_none_is_required_until_one_is_made(tmp_path: Path, clock: Clock) -> None:
    """From then on one is, even when all are revoked: a service never opens by a revocation."""
    known = ApiKeys(tmp_path)
    assert not known.required
    _, key = create_key(tmp_path, "shop")
    clock.passed += 1
    assert known.required
    revoke_key(tmp_path, key.id)
    clock.passed += 1
    assert known.required


@pytest.mark.parametrize("content", ['{"format": 1, "keys": []}', '{"format": 1}', "{}"])
def test_an_emptied_file_lets_nobody_in(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """Neither while the service runs nor when it starts again; the log says so and what to do, and that helps."""
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


def test_a_file_of_no_keys_does_not_open_what_was_open(tmp_path: Path, clock: Clock) -> None:
    """A service that never had keys takes an empty file for what it is: somebody wants keys."""
    known = ApiKeys(tmp_path)
    assert not known.required
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_text('{"format": 1, "keys": []}')
    clock.passed += 1
    assert known.required


@pytest.mark.parametrize("content", ["", "{", "null", '{"format": 2}', '{"format": 1, "keys": [{"id": "x"}]}', None])
def test_damaged_keys_leave_the_last_good_ones_in_force(
    tmp_path: Path, clock: Clock, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the file is cut, of another form or gone; the log says so once, and a mended file counts again."""
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
    """It would otherwise have none, and be open; nor is a new key written over them."""
    create_key(tmp_path, "shop")
    file(tmp_path).write_text("{")
    for use in (lambda: ApiKeys(tmp_path), lambda: create_key(tmp_path, "other"), lambda: revoke_key(tmp_path, "0")):
        with pytest.raises(ConfigError, match="damaged") as caught:
            use()
        assert caught.value.where == str(file(tmp_path))
    assert file(tmp_path).read_text() == "{"


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    """Two administrators do not overwrite each other's."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_key(tmp_path, f"caller {number}"), range(16)))
    known = ApiKeys(tmp_path)
    assert all(known.scopes(text) for text, _ in made)
    assert len({key.id for _, key in made}) == 16


def test_a_key_from_its_making_to_its_end(store: Path, command: Callable[..., CommandResult]) -> None:
    """create shows it once, on stdout alone; list shows everything else; revoke ends it."""
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
    shown = command("keys", "list").out
    assert rows[0]["id"] in shown
    assert text.split("_", 2)[2] not in shown
    assert command("keys", "revoke", rows[0]["id"]).code == 0
    assert command("keys", "revoke", rows[0]["id"], "--json").json["state"] == "revoked"
    assert command("keys", "list", "--json").json[0]["state"] == "revoked"
    assert ApiKeys(store).scopes(text) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("create", "shop", "--expires", "tomorrow"), "not a duration"),
        (("create", "shop", "--expires", "0d"), "not a duration"),
        (("create", "shop", "--expires", f"{10**15}d"), "--expires"),
        (("create", "shop", "--expires", "99999999d"), "--expires"),
        (("create", "shop", "--scope", "root"), "'root'"),
        (("create", " "), "name"),
        (("create", "x" * 101), "name"),
        (("revoke", "12345678"), "no key"),
    ],
)
def test_what_cannot_be_done_is_told(
    store: Path, command: Callable[..., CommandResult], words: tuple[str, ...], told: str
) -> None:
    """Exit code 2, what is wrong, and no file."""
    done = command("keys", *words, "--json")
    assert done.code == 2
    assert told in json.dumps(done.json)
    assert not file(store).exists()
