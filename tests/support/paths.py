"""Paths of the repository and the installed command."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TOWLINE = str(Path(sys.executable).with_name("towline"))
