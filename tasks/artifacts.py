"""Artifacts on a run's page in Prefect; descriptions are escaped, since Prefect renders them as Markdown.

A step that runs on another platform has no such page: its functions write none.
"""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext

from towline.formatting import escape_markdown


def markdown(text: str, key: str, description: str) -> None:
    """A Markdown artifact; ``text`` must be escaped by the caller."""
    if _has_run():
        create_markdown_artifact(text, key=key, description=escape_markdown(description))


def table(rows: Sequence[dict[str, Any]], key: str, description: str) -> None:
    if _has_run():
        create_table_artifact(list(rows), key=key, description=escape_markdown(description))


def link(address: str, key: str, description: str) -> None:
    if _has_run():
        create_link_artifact(address, key=key, description=escape_markdown(description))


def _has_run() -> bool:
    """Whether this is a part of a run of Prefect."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None
