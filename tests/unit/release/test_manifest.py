"""Verification of a release against its manifest."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.checks import at_least_one
from towline.errors import ReleaseError
from towline.manifest import MANIFEST, verify_release


def test_an_unchanged_release_passes(release: Path) -> None:
    """The manifest has the name, version and files that were packaged."""
    manifest = verify_release(release)
    assert (manifest.name, manifest.version) == ("house-value", 3)
    assert "model.skops" in manifest.files
    assert release.name == manifest.folder


def test_a_flipped_bit_in_any_file_is_refused(release: Path) -> None:
    """At the start, in the middle and at the end of each file, also of the manifest."""
    flips = 0
    for path in at_least_one(sorted(p for p in release.rglob("*") if p.is_file())):
        raw = path.read_bytes()
        for at in sorted({0, len(raw) - 1, *range(0, len(raw), max(1, len(raw) // 12))}):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(ReleaseError) as caught:
                verify_release(release)
            assert path.name in str(caught.value)
            assert caught.value.remedy
            flips += 1
        path.write_bytes(raw)
    verify_release(release)
    assert flips > 150


def test_the_error_names_a_missing_file(release: Path) -> None:
    """The manifest itself may be missing."""
    for name in ("probe.json", MANIFEST):
        (release / name).unlink()
        with pytest.raises(ReleaseError, match=f"{name} is missing"):
            verify_release(release)


@pytest.mark.parametrize("name", ["extra.py", "plots/extra.png", ".hidden", "empty/"])
def test_an_extra_file_or_folder_is_refused(release: Path, name: str) -> None:
    """Hidden files and empty folders are also reported."""
    (release / name).mkdir() if name.endswith("/") else (release / name).write_bytes(b"")
    with pytest.raises(ReleaseError, match="manifest"):
        verify_release(release)


def test_links_and_special_files_are_refused(release: Path, tmp_path: Path) -> None:
    """A link to the same content, a link to a folder and a pipe are not opened."""
    moved = shutil.move(release / "probe.json", tmp_path / "probe.json")
    (release / "probe.json").symlink_to(moved)
    with pytest.raises(ReleaseError, match=r"probe\.json is a link"):
        verify_release(release)
    (release / "probe.json").unlink()
    os.mkfifo(release / "probe.json")
    with pytest.raises(ReleaseError, match="special file"):
        verify_release(release)
    (release / "probe.json").unlink()
    shutil.move(moved, release / "probe.json")
    shutil.move(release / "plots", tmp_path / "plots")
    (release / "plots").symlink_to(tmp_path / "plots")
    with pytest.raises(ReleaseError, match="plots is a link"):
        verify_release(release)


def test_the_manifest_cannot_name_a_file_outside_the_release(release: Path) -> None:
    """A name with ``..`` is refused although its digest is correct."""
    manifest = verify_release(release)
    (release.parent / "outside").write_bytes((release / "probe.json").read_bytes())
    renamed = {"../outside": manifest.files["probe.json"]}
    forged = manifest.model_copy(update={"files": {**manifest.files, **renamed}})
    (release / MANIFEST).write_text(forged.text())
    with pytest.raises(ReleaseError, match="not a manifest"):
        verify_release(release.rename(release.parent / forged.folder))


def test_a_folder_with_the_name_of_another_release_is_refused(release: Path) -> None:
    """A folder whose name has no digest can be opened."""
    with pytest.raises(ReleaseError, match="the folder's name says"):
        verify_release(release.rename(release.parent / "v3-0123456789ab"))
    verify_release((release.parent / "v3-0123456789ab").rename(release.parent / "anything"))
    digest = release.name.partition("-")[2]
    with pytest.raises(ReleaseError, match="version 3"):
        verify_release((release.parent / "anything").rename(release.parent / f"v4-{digest}"))


def test_a_missing_or_empty_folder_or_a_file_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("gone", "file", "empty"):
        with pytest.raises(ReleaseError):
            verify_release(tmp_path / name)


def test_a_release_of_an_earlier_version_passes(release: Path) -> None:
    """Its manifest lacks fields that were added later."""
    document = json.loads((release / "manifest.json").read_text())
    assert "calibration" not in document
    assert verify_release(release).calibration is None
