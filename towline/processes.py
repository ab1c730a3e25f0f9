"""Which process is meant, and whether it lives: a pid alone may be another's by now."""

from pathlib import Path


def born(pid: int) -> str:
    """When a living process was started, in clock ticks since boot; empty when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def lives(pid: int, birth: str) -> bool:
    """Whether the process that was ``pid`` at its ``birth`` still runs."""
    return bool(birth) and born(pid) == birth
