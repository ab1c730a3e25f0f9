"""A separate environment for each peer, created from its pinned requirements at the first use."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path("~/.cache/towline-bench").expanduser()


def bin_of(peer: str, cache: Path = CACHE) -> Path:
    """Where its programs are; the environment is made again when its requirements have changed."""
    requirements = HERE / peer / "requirements.txt"
    home, mark = cache / peer, cache / peer / "made-from.txt"
    if not mark.exists() or mark.read_text() != requirements.read_text():
        print(f"making the environment of {peer} in {home}", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        uv = shutil.which("uv") or shutil.which("uv", path="/opt/tools/bin")
        if uv:
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
            pip = [uv, "pip", "install", "--compile-bytecode", "--python", home]
        else:
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            pip = [home / "bin" / "pip", "install"]
        subprocess.run([*pip, "--quiet", "-r", requirements], check=True)
        mark.write_text(requirements.read_text())
    return home / "bin"


def version(distribution: str, bin_: Path) -> str:
    """``mlflow 3.17.2``, as installed with these programs, or in this process's environment."""
    if bin_ == Path(sys.executable).parent:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    places = [str(place) for place in bin_.parent.glob("lib/python*/site-packages")]
    return f"{distribution} {next(iter(importlib.metadata.distributions(name=distribution, path=places))).version}"
