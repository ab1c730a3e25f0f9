"""The page at /docs: a single HTML document that loads nothing and runs no script."""

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from towline.data.schema.contract import Column
from towline.serving.problems import PROBLEM_TYPES

if TYPE_CHECKING:
    from towline.inference.predictor import Model

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8")
_PAGE = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
# content security policy: the page may load, run, frame and send nothing
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
).encode()


def render(model: "Model", document: dict[str, Any], address: str, answer: bytes) -> str:
    """Renders the page; every value is escaped.

    Args:
        model: the model that the page describes.
        document: the OpenAPI document of the service.
        address: address of the service, as in the request.
        answer: response to the example request, as JSON.
    """
    request = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    paths = "".join(
        f'<tr><td><span class="method {method.upper()}">{method.upper()}</span> <code>{escape(path)}</code></td>'
        f"<td>{escape(operation['summary'])}</td><td>{'key' if 'security' in operation else 'open'}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    errors = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td class="number">{kind.status}</td>'
        f"<td>{escape(kind.title)}{f'. <span class=soft>{escape(kind.remedy)}</span>' if kind.remedy else ''}</td></tr>"
        for code, kind in sorted(PROBLEM_TYPES.items(), key=lambda item: item[1].status)
    )
    return _PAGE.substitute(
        title=f"{escape(model.name)} {model.version}",
        style=_STYLE,
        head=_head(model),
        example=_example(request, address, answer),
        columns="".join(map(_column, model.contract.feature_columns)),
        paths=paths,
        errors=errors,
    )


def _head(model: "Model") -> str:
    properties = [
        ("version", str(model.version)),
        ("task", model.contract.task),
        ("trained", model.metadata.created[:10]),
    ]
    name = model.metadata.primary
    if (interval := model.metadata.metrics.get(name)) is not None:
        properties.append((f"{name} on the holdout", interval.text()))
    if model.contract.classes:
        properties.append(("classes", ", ".join(map(str, model.contract.classes))))
    items = "".join(
        f"<li><span class=soft>{escape(name)}</span> <b>{escape(value)}</b></li>" for name, value in properties
    )
    return (
        f"<header><h1>{escape(model.name)}</h1><p class=soft>Predicts <b>{escape(model.contract.target)}</b>.</p>"
        f'<ul class="facts">{items}</ul></header>'
    )


def _example(request: dict[str, Any], address: str, answer: bytes) -> str:
    line = json.dumps(request, ensure_ascii=False)
    quoted = line.replace("'", "'\\''")
    curl = f"curl {address}/predict -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in json.loads(answer).items())
    response = "{{\n{}\n}}".format(",\n".join(lines))
    return (
        f"<h2>Request</h2><pre>{escape(curl)}</pre>"
        "<p class=soft>The row is an example.</p>"
        "<p class=soft>If the service has keys, add <code>-H 'Authorization: Bearer KEY'</code>. One request may "
        "hold many rows; the predictions have the same order.</p>"
        f"<h2>Response</h2><pre>{escape(response)}</pre>"
    )


def _column(column: Column) -> str:
    if column.pii:
        values = "personal data"
    elif column.kind == "boolean":
        values = "true, false"
    elif column.min is not None and column.max is not None:
        values = f"{column.min:.6g} to {column.max:.6g}"
    elif column.categories:
        more = f", … ({len(column.categories):,})" if len(column.categories) > 12 else ""
        values = ", ".join(column.categories[:12]) + more
    else:
        values = f"{column.levels:,} levels" if column.kind == "category" else ""
    return (
        f"<tr><td><code>{escape(column.name)}</code></td><td>{column.kind}</td><td>{escape(values)}</td>"
        f"<td>{'yes' if column.nullable else 'none'}</td></tr>"
    )
