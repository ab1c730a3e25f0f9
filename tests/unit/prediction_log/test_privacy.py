"""What a policy lets through."""

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


def test_each_column_as_the_release_says(release: FakeRelease, keys: HashKeys) -> None:
    """Kept as it came, hashed, coarse, or absent; extra fields of a request only where they are keys."""
    policy = read_privacy_filter(release.directory, release.contract, keys)
    found = applied(policy, ROW | {"colour": "red"})
    key = keys.month_key("2026-10")
    assert found == {
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


def test_without_a_policy_every_feature_is_kept(releases: Callable[..., FakeRelease], keys: HashKeys) -> None:
    """And nothing else: a field that is no feature is not logged. No key is made that nobody needs."""
    release = releases()
    assert list(applied(read_privacy_filter(release.directory, release.contract, keys), ROW)) == [
        "size", "age", "zip", "town", "street", "member", "at", "born",
    ]  # fmt: skip
    assert not keys.folder.exists()


def test_everything_may_be_dropped(releases: Callable[..., FakeRelease], keys: HashKeys) -> None:
    """A release whose every feature is personal is logged by its answers alone."""
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
def test_buckets(
    releases: Callable[..., FakeRelease], keys: HashKeys, column: str, value: object, bucket: object
) -> None:
    """Tenths of the training rows, else of the range; months; the ten commonest levels; null stays null."""
    release = releases({"columns": dict.fromkeys(("age", "size", "town", "born", "member"), "bucket")})
    policy = read_privacy_filter(release.directory, release.contract, keys)
    assert applied(policy, ROW | {column: value})[column] == bucket


def test_one_value_has_one_hash(release: FakeRelease, keys: HashKeys) -> None:
    """However it is spelt, within a month; in another month, and in another column, it has another."""
    policy = read_privacy_filter(release.directory, release.contract, keys)
    same = {str(applied(policy, ROW | {"customer": value})["customer"]) for value in (4711508, 4711508.0, "4711508")}
    assert len(same) == 1
    later = applied(policy, ROW | {"zip": "4711508"}, OCTOBER + 31 * 86400)
    assert later["customer"] not in same
    assert later["zip"].split(":")[1] != later["customer"].split(":")[1]  # type: ignore[attr-defined]
    assert {*same, later["customer"]} == set(keys.hashes("customer", "4711508"))


@pytest.mark.parametrize("value", [None, "", [1, 2], {"a": 1}, float("nan")])
def test_what_is_no_value_has_no_hash(release: FakeRelease, keys: HashKeys, value: object) -> None:
    """A key may be absent, or hold anything: then it is null."""
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
def test_a_value_is_spelt_one_way(kind: str, value: object, text: str | None) -> None:
    """So that the value a person names finds the hash of the value a request brought."""
    assert ValueReader(kind).spell(value) == text  # type: ignore[arg-type]


def test_keys_are_nobody_elses(keys: HashKeys) -> None:
    """A key is 32 random bytes in a file that its owner alone reads, in a folder that is closed to others."""
    assert keys.month_key("2026-10") != keys.month_key("2026-11")
    assert len(keys.month_key("2026-10")) == 32
    assert stat.S_IMODE((keys.folder / "2026-10").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == stat.S_IMODE(keys.folder.parent.stat().st_mode) == 0o700
    assert keys.months() == ["2026-10", "2026-11"]


def test_keys_are_removed_with_their_months(keys: HashKeys) -> None:
    """Only months that are over before the day."""
    for month in ("2026-08", "2026-09", "2026-10"):
        keys.month_key(month)
    assert keys.remove(dt.date(2026, 9, 30)) == ["2026-08"]
    assert keys.remove(dt.date(2026, 10, 1)) == ["2026-09"]
    assert [path.name for path in keys.folder.iterdir()] == ["2026-10"]


def test_the_releases_own_config_counts(release: FakeRelease, keys: HashKeys) -> None:
    """Whatever the project's config says by now."""
    (release.directory / "config.yaml").write_text("name: demo\ndata: {source: t, target: y}\n")
    assert len(read_privacy_filter(release.directory, release.contract, keys).fields) == 8
