"""The privacy filter of the prediction log."""

import datetime as dt
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.prediction_log import ROW, FakeRelease
from towline.data.schema.values import ValueReader
from towline.prediction_log.privacy import HashKeys, PrivacyFilter, hash_value, read_privacy_filter

OCTOBER = dt.datetime(2026, 10, 5, tzinfo=dt.UTC).timestamp()


@pytest.fixture
def keys(tmp_path: Path) -> HashKeys:
    return HashKeys(tmp_path / "demo" / "hash-keys")


def applied(policy: PrivacyFilter, row: dict[str, object], at: float = OCTOBER) -> dict[str, object]:
    (values,) = policy.filter_rows([row], at)
    return dict(zip([field.name for field in policy.fields], values, strict=True))


def test_each_column_is_logged_by_its_policy(release: FakeRelease, keys: HashKeys) -> None:
    """Other fields of a request are logged only if they are join keys."""
    policy = read_privacy_filter(release.directory, release.contract, keys)
    values = applied(policy, ROW | {"colour": "red"})
    key = keys.month_key("2026-10")
    assert values == {
        "size": 12.5,
        "age": "40..50",
        "zip": hash_value("2026-10", key, "zip", "803317715"),
        "town": "Ulm",
        "member": True,
        "at": "2026-10-05T08:00:00",
        "born": "1985-02",
        "customer": hash_value("2026-10", key, "customer", "4711508"),
        "order": hash_value("2026-10", key, "order", "A-100-Z7"),
    }
    assert [field.stored for field in policy.fields] == [
        "float64", "string", "string", "string", "bool", "timestamp", "string", "string", "string",
    ]  # fmt: skip


def test_without_a_policy_all_features_are_kept(releases: Callable[..., FakeRelease], keys: HashKeys) -> None:
    """Other fields are not logged, and no hash key is created."""
    release = releases()
    assert list(applied(read_privacy_filter(release.directory, release.contract, keys), ROW)) == [
        "size", "age", "zip", "town", "street", "member", "at", "born",
    ]  # fmt: skip
    assert not keys.folder.exists()


def test_all_features_may_be_dropped(releases: Callable[..., FakeRelease], keys: HashKeys) -> None:
    """The log then holds predictions only."""
    release = releases({"pii": list(ROW)})
    assert read_privacy_filter(release.directory, release.contract, keys).filter_rows([ROW, ROW], OCTOBER) == [[], []]


@pytest.mark.parametrize(
    ("column", "value", "bucket"),
    [
        ("age", -3, "..10"), ("age", "9.99", "..10"), ("age", 10, "10..20"), ("age", 90, "90.."), ("age", 1e9, "90.."),
        ("age", None, None), ("size", 9.5, "..10"), ("size", 55.5, "50..60"), ("size", 400, "90.."),
        ("town", "town 3", "town 3"), ("town", "town 15", "other"), ("town", "Atlantis", "other"), ("town", None, None),
        ("born", "1985-12-31T23:59:59+02:00", "1985-12"), ("born", None, None), ("member", True, True),
    ],
)  # fmt: skip
def test_buckets_are_deciles_months_or_frequent_levels(
    releases: Callable[..., FakeRelease], keys: HashKeys, column: str, value: object, bucket: object
) -> None:
    """Without a profile they are tenths of the range; null stays null."""
    release = releases({"columns": dict.fromkeys(("age", "size", "town", "born", "member"), "bucket")})
    policy = read_privacy_filter(release.directory, release.contract, keys)
    assert applied(policy, ROW | {column: value})[column] == bucket


def test_equal_values_have_equal_hashes_within_a_month(release: FakeRelease, keys: HashKeys) -> None:
    """The hash differs between months and between columns."""
    policy = read_privacy_filter(release.directory, release.contract, keys)
    same = {str(applied(policy, ROW | {"customer": value})["customer"]) for value in (4711508, 4711508.0, "4711508")}
    assert len(same) == 1
    later = applied(policy, ROW | {"zip": "4711508"}, OCTOBER + 31 * 86400)
    assert later["customer"] not in same
    assert later["zip"].split(":")[1] != later["customer"].split(":")[1]  # type: ignore[attr-defined]
    assert {*same, later["customer"]} == set(keys.hashes("customer", "4711508"))


@pytest.mark.parametrize("value", [None, "", [1, 2], {"a": 1}, float("nan")])
def test_missing_and_invalid_join_keys_are_null(release: FakeRelease, keys: HashKeys, value: object) -> None:
    policy = read_privacy_filter(release.directory, release.contract, keys)
    assert applied(policy, ROW | {"customer": value})["customer"] is None
    row = {name: each for name, each in ROW.items() if name != "customer"}
    assert applied(policy, row)["customer"] is None


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("numeric", "12.50", "12.5"), ("numeric", 12, "12"), ("numeric", "wide", None), ("boolean", "True", "true"),
        ("boolean", 0, "false"), ("datetime", "2026-10-05T10:00:00+02:00", "2026-10-05T08:00:00"),
        ("category", "007", "007"), ("category", 7.0, "7"),
    ],
)  # fmt: skip
def test_a_value_has_one_canonical_text(kind: str, value: object, text: str | None) -> None:
    """A value on the command line has the hash of the same value in a request."""
    assert ValueReader(kind).spell(value) == text  # type: ignore[arg-type]


def test_hash_keys_are_random_and_private(keys: HashKeys) -> None:
    """A key has 32 random bytes; only the owner can read its file and folder."""
    assert keys.month_key("2026-10") != keys.month_key("2026-11")
    assert len(keys.month_key("2026-10")) == 32
    assert stat.S_IMODE((keys.folder / "2026-10").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == stat.S_IMODE(keys.folder.parent.stat().st_mode) == 0o700
    assert keys.months() == ["2026-10", "2026-11"]


def test_hash_keys_of_past_months_are_removed(keys: HashKeys) -> None:
    for month in ("2026-08", "2026-09", "2026-10"):
        keys.month_key(month)
    assert keys.remove(dt.date(2026, 9, 30)) == ["2026-08"]
    assert keys.remove(dt.date(2026, 10, 1)) == ["2026-09"]
    assert [path.name for path in keys.folder.iterdir()] == ["2026-10"]


def test_the_config_in_the_release_decides(release: FakeRelease, keys: HashKeys) -> None:
    """The config of the project may have changed after the training."""
    (release.directory / "config.yaml").write_text("name: demo\ndata: {source: t, target: y}\n")
    assert len(read_privacy_filter(release.directory, release.contract, keys).fields) == 8
