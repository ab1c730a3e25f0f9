"""Escaping of text in Markdown."""

import re


def escape(text: str) -> str:
    """The text on one line, with escaped Markdown and HTML markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~])", r"\\\1", " ".join(text.split()))
