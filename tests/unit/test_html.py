"""Every HTML page of towline uses the base template and the style sheet in towline/html."""

from pathlib import Path

import pytest

import towline

PACKAGE = Path(towline.__file__).parent
PAGES = sorted(
    path for path in PACKAGE.rglob("*.jinja") if path.name.endswith(".html.jinja") and path.parent != PACKAGE / "html"
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_extend_the_base_template(path: Path) -> None:
    """A page extends the base template, directly or through another template, and defines no styles."""
    text = path.read_text()
    assert text.startswith(('{% extends "base.html.jinja" %}', '{% extends "page.html.jinja" %}'))
    assert "<style" not in text
    assert "style=" not in text


def test_only_the_style_sheet_contains_css() -> None:
    """No Python file writes a style element; there are pages in several packages."""
    assert len({path.parent for path in PAGES}) >= 5
    assert [path for path in PACKAGE.rglob("*.py") if "<style" in path.read_text()] == []
