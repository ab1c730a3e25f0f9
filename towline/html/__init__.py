"""HTML pages: one base template, one style sheet and one set of macros for every page that towline writes.

A page is a Jinja template that extends ``base.html.jinja``. The result is a single document that needs no network and
runs no script; every value in it is escaped.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline.formatting import format_age, format_number, format_time

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent
#: state of a check, window, SLO, flow or event → class of its color
STATE_CLASSES: Mapping[str, str] = {
    **dict.fromkeys(("ok", "passed", "met", "promoted", "completed", "unchanged"), "ok"),
    **dict.fromkeys(("warned", "exhausted", "warn", "refused", "retrain"), "warning"),
    **dict.fromkeys(
        ("degraded", "drift", "invalid_schema", "burning", "block", "roll back", "rolled back", "failed", "crashed",
         "data refused"),
        "alarm",
    ),
}  # fmt: skip


@cache
def style() -> str:
    """The style sheet of all pages."""
    return (_FOLDER / "style.css").read_text(encoding="utf-8")


@cache
def content_security_policy(*, forms: bool = False) -> str:
    """The content security policy of a page: it may load, run, frame and send nothing but forms to its own address."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    target = "'self'" if forms else "'none'"
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action {target}; "
        "frame-ancestors 'none'"
    )


def meta_policy(*, forms: bool = False) -> str:
    """The policy of a page in a <meta> element, which cannot hold frame-ancestors."""
    return content_security_policy(forms=forms).replace("; frame-ancestors 'none'", "")


def environment(folder: Path, **options: Any) -> "Environment":
    """A Jinja environment for the templates of a folder, which may extend the base template.

    Args:
        folder: folder of the templates.
        options: further options of ``jinja2.Environment``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    settings: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    made = Environment(loader=FileSystemLoader([folder, _FOLDER]), **(settings | options))  # noqa: S701 - autoescape is on
    made.globals |= {"style": style(), "policy": meta_policy()}
    made.filters |= {
        "number": format_number,
        "percent": lambda share: f"{share:.0%}",
        "time": format_time,
        "age": format_age,
        "state_class": lambda state: STATE_CLASSES.get(state.lower(), "soft"),
    }
    return made


_cached_environment = cache(environment)


def render_page(template: Path, **values: Any) -> str:
    """Renders a page.

    Args:
        template: path of its template.
        values: variables of the template.
    """
    return _cached_environment(template.parent).get_template(template.name).render(values)
