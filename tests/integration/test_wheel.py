"""The wheel, built from the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.paths import REPOSITORY


def test_the_wheel_holds_towline_and_nothing_else(tmp_path: Path) -> None:
    """Every file of towline/ is in it; a top-level `tasks` or `flows` would hide a user's own modules."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", tmp_path, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("towline-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"towline"}
    files = [path for path in (REPOSITORY / "towline").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(REPOSITORY)) for path in files} <= names
