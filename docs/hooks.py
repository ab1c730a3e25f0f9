"""Hooks of the documentation site: links to files outside docs/ become plain text, since the site lacks them."""

import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1", markdown)


def on_pre_build(config: Any, **_: Any) -> None:
    """Decisions are in the navigation without being listed twice."""
    folder = Path(config["docs_dir"]) / "decisions"
    pages = [f"decisions/{path.name}" for path in sorted(folder.glob("[0-9]*.md"))]
    for section in config["nav"] or []:
        for entries in section.values():
            if isinstance(entries, list):
                for entry in entries:
                    if entry.get("Decisions") == "decisions/index.md":
                        entry["Decisions"] = ["decisions/index.md", *pages]
