"""Text that stands within Markdown."""

import re


def escape(text: str) -> str:
    """The text on one line, with what Markdown or the HTML within it would take for markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~])", r"\\\1", " ".join(text.split()))
