"""Artifacts on a run's page in Prefect; descriptions are escaped, since Prefect renders them as Markdown."""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from towline.markdown import escape


def markdown(text: str, key: str, description: str) -> None:
    """A Markdown artifact; ``text`` must be escaped by the caller."""
    create_markdown_artifact(text, key=key, description=escape(description))


def table(rows: Sequence[dict[str, Any]], key: str, description: str) -> None:
    create_table_artifact(list(rows), key=key, description=escape(description))


def link(address: str, key: str, description: str) -> None:
    create_link_artifact(address, key=key, description=escape(description))
