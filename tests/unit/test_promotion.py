"""Promotion and rollback by hand: exact results, errors with a remedy."""

from collections.abc import Callable

import pytest

from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.registry.ledger import JudgedVersion

Command = Callable[..., CommandResult]
FAILED = {
    "verdict": "fail",
    "checks": [
        {"name": "baseline", "outcome": "pass", "detail": "better", "key": "gate.baseline_margin"},
        {"name": "latency", "outcome": "fail", "detail": "one row takes 12 ms, at most 10", "key": "gate.latency_ms"},
        {"name": "max mae", "outcome": "fail", "detail": "mae 9, at most 8", "key": "gate.max.mae"},
    ],
}


def test_the_champion_is_not_promoted_again(sample_store: SampleStore, command: Command) -> None:
    """The command reports since when it is champion; no row is written."""
    before = sample_store.ledger.rows(MODEL)
    result = command("promote", f"{MODEL}@1", "--reason", "better")
    assert result.code == 0, result.err
    assert "version 1 is the champion already, since" in result.out
    assert "instead of" not in result.out
    document = command("promote", f"{MODEL}@1", "--reason", "better", "--json").json
    assert (document["version"], document["changed"]) == (1, False)
    assert sample_store.ledger.rows(MODEL) == before


def test_promotion_and_rollback(sample_store: SampleStore, command: Command) -> None:
    """The result has the previous version; a rollback is a change, too."""
    result = command("promote", f"{MODEL}@2", "--reason", "better")
    assert "version 2 serves now instead of 1" in result.out
    assert command("rollback", "--json").json["changed"]
    assert sample_store.ledger.champion(MODEL).version == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("words", [MODEL, "2", f"{MODEL}@", f"{MODEL}@two"])
def test_a_promotion_needs_a_version(words: str, sample_store: SampleStore, command: Command) -> None:
    """A name without a version is rejected with the list of versions and their states."""
    before = sample_store.ledger.rows(MODEL)
    result = command("promote", words, "--reason", "better")
    assert result.code == 2
    assert f"{MODEL}@" in result.err
    assert sample_store.ledger.rows(MODEL) == before


def test_an_unknown_name_suggests_similar_ones(sample_store: SampleStore, command: Command) -> None:
    """The suggestions include the intended name."""
    assert f"{MODEL}@1 (champion), {MODEL}@2 (rolled back)" in command("promote", MODEL, "--reason", "x").err


def test_the_error_for_a_rejected_version_has_the_keys(sample_store: SampleStore, command: Command) -> None:
    """The error has the failed checks, their keys, and the command to judge the version again."""
    ledger = sample_store.ledger
    ledger.register(MODEL, "ann", "trained", {}, "key3")
    judged = JudgedVersion(3, "key3", f"releases/{MODEL}/v3-0123456789ab", FAILED)
    ledger.refuse(MODEL, judged, "gate", "fail: latency, max mae")
    with pytest.raises(Exception, match="has not passed the gate") as caught:
        ledger.promote_again(MODEL, 3, 1, "ann", "please")
    text = str(caught.value)
    assert "latency: one row takes 12 ms, at most 10 (gate.latency_ms)" in text
    assert "baseline" not in text
    assert "change gate.latency_ms, gate.max.mae in the config, or the data" in text
    assert "towline run CONFIG --force" in text


def test_a_version_without_a_release(sample_store: SampleStore, command: Command) -> None:
    """A version whose run is not finished or was killed has a number but no release; the error has the reason."""
    sample_store.ledger.register(MODEL, "ann", "trained", {}, "key3")
    rows = {row["version"]: row for row in command("models", MODEL, "--json").json}
    assert (rows[3]["state"], rows[3]["holdout"]) == ("registered", "no release yet")
    for words in (
        ("show", f"{MODEL}@3"), ("package", f"{MODEL}@3"), ("promote", f"{MODEL}@3", "--reason", "x"),
        ("score", "x.csv", "y.csv", "--model", f"{MODEL}@3"),
    ):  # fmt: skip
        result = command(*words)
        assert result.code in (2, 4, 6)
        assert "its run has not ended" in result.err


def test_a_replaced_release_is_not_promoted(sample_store: SampleStore, command: Command) -> None:
    """The ledger has the digest of the judged release, so another valid release in its folder is refused."""
    import shutil

    from towline.manifest import read_manifest

    other, own = sample_store.release(2), sample_store.release(1)
    sample_store.promote(2)
    manifest = read_manifest(own)
    forged = manifest.model_copy(update={"created": "2020-01-01T00:00:00+00:00"})
    (own / "manifest.json").write_text(forged.text())
    shutil.move(own, own.with_name(forged.folder))
    assert other.exists()
    result = command("promote", f"{MODEL}@1", "--reason", "x")
    assert result.code == 6
    assert sample_store.ledger.champion(MODEL).version == 2  # type: ignore[union-attr]
