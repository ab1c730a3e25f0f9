"""The page at /docs: how to call the service. It is a single HTML document that needs no network and runs no script."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline.data.schema.contract import Column
from towline.html import render_page
from towline.serving.problems import PROBLEM_TYPES

if TYPE_CHECKING:
    from towline.inference.predictor import Model

MAX_CATEGORIES = 12


def render(model: "Model", document: dict[str, Any], address: str, answer: bytes) -> str:
    """Renders the page; every value is escaped.

    Args:
        model: the model that the page describes.
        document: the OpenAPI document of the service.
        address: address of the service, as in the request.
        answer: response to the example request, as JSON.
    """
    request = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in json.loads(answer).items())
    return render_page(
        Path(__file__).with_name("service_page.html.jinja"),
        model=model,
        properties=_properties(model),
        address=address,
        request=json.dumps(request, ensure_ascii=False).replace("'", "'\\''"),
        response="{{\n{}\n}}".format(",\n".join(lines)),
        columns=[(column, _describe_values(column)) for column in model.contract.input_columns],
        paths=document["paths"],
        problems=sorted(PROBLEM_TYPES.items(), key=lambda item: item[1].status),
    )


def _properties(model: "Model") -> list[tuple[str, str]]:
    metric = model.metadata.primary
    properties = [
        ("version", str(model.version)), ("task", model.contract.task), ("trained", model.metadata.created[:10])
    ]  # fmt: skip
    if (interval := model.metadata.metrics.get(metric)) is not None:
        properties.append((f"{metric} on the holdout", interval.text()))
    if model.contract.classes:
        properties.append(("classes", ", ".join(map(str, model.contract.classes))))
    return properties


def _describe_values(column: Column) -> str:
    if column.pii:
        return "personal data"
    if column.kind == "boolean":
        return "true, false"
    if column.min is not None and column.max is not None:
        return f"{column.min:.6g} to {column.max:.6g}"
    if column.categories:
        more = f", … ({len(column.categories):,})" if len(column.categories) > MAX_CATEGORIES else ""
        return ", ".join(column.categories[:MAX_CATEGORIES]) + more
    if column.kind == "text":
        return "any text"
    return f"{column.levels:,} levels" if column.kind == "category" else ""
