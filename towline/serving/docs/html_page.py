"""The page at /docs: a single HTML document that loads nothing and runs no script."""

import base64
import hashlib
import json
from html import escape
from typing import TYPE_CHECKING, Any

from towline.data.schema.contract import Column
from towline.serving.problems import PROBLEM_TYPES

if TYPE_CHECKING:
    from towline.inference.predictor import Model

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6673; --line: #dfe3e8; --paper: #fff; --box: #f6f7f9;
  --mark: #0b5cad; --post: #1a7f4b }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3af; --line: #353b44; --paper: #16191e;
  --box: #1d2127; --mark: #7db8ff; --post: #5cc98f } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 66rem; padding: 2.2rem 1.5rem 4rem }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.2rem; margin-bottom: 1.6rem }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem }
p { margin: .3rem 0; max-width: 46rem } .soft { color: var(--soft) } a { color: var(--mark) }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .9rem 0 0; padding: 0; list-style: none }
.facts b { font-weight: 600 } .wide { overflow-x: auto }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .85rem 1rem; overflow-x: auto;
  font-size: .84rem; line-height: 1.5; margin: .5rem 0; user-select: all }
code { font: .9em ui-monospace, monospace }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink) }
th, td { padding: .42rem 1rem .42rem 0; vertical-align: top } td { border-bottom: 1px solid var(--line) }
td:first-child { white-space: nowrap } td.number { text-align: right; font-variant-numeric: tabular-nums }
.method { display: inline-block; width: 3.2rem; font-weight: 600; font-size: .78rem; color: var(--mark) }
.POST { color: var(--post) } tr:target td { background: var(--box) }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem } }
"""
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
    contract = model.contract
    request = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    sections = [_head(model), _example(request, address, answer)]
    columns = "".join(map(_column, contract.feature_columns))
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
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(model.name)} {model.version}</title><style>{_STYLE}</style></head><body>
{"".join(sections)}
<h2>A row</h2>
<p>Give every field, <code>null</code> if its value is unknown; additional fields are ignored. Values outside the
range of the training data are accepted too.</p>
<div class="wide"><table><thead><tr><th>Field</th><th>Kind</th><th>In training</th><th>Nulls</th></tr></thead>
<tbody>{columns}</tbody></table></div>
<h2>Paths</h2>
<div class="wide"><table><thead><tr><th>Path</th><th>What it does</th><th>Access</th></tr></thead>
<tbody>{paths}</tbody></table></div>
<p class="soft">As an OpenAPI document: <a href="openapi.json">openapi.json</a></p>
<h2>Errors</h2>
<p>An error is a JSON document (RFC 9457, <code>application/problem+json</code>). It names
fields and rows, counted from 0, but no values, and the request id as in the log of the service.</p>
<div class="wide"><table><thead><tr><th>Code</th><th>Status</th><th>Meaning</th></tr></thead>
<tbody>{errors}</tbody></table></div>
</body></html>
"""


def _head(model: "Model") -> str:
    facts = [("version", str(model.version)), ("task", model.contract.task), ("trained", model.metadata.created[:10])]
    name = model.metadata.primary
    if (interval := model.metadata.metrics.get(name)) is not None:
        facts.append((f"{name} on the holdout", interval.text()))
    if model.contract.classes:
        facts.append(("classes", ", ".join(map(str, model.contract.classes))))
    items = "".join(f"<li><span class=soft>{escape(name)}</span> <b>{escape(value)}</b></li>" for name, value in facts)
    return (
        f"<header><h1>{escape(model.name)}</h1><p class=soft>Predicts <b>{escape(model.contract.target)}</b>.</p>"
        f'<ul class="facts">{items}</ul></header>'
    )


def _example(request: dict[str, Any], address: str, answer: bytes) -> str:
    line = json.dumps(request, ensure_ascii=False)
    quoted = line.replace("'", "'\\''")
    curl = f"curl {address}/predict -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in json.loads(answer).items())
    answered = "{{\n{}\n}}".format(",\n".join(lines))
    return (
        f"<h2>Request</h2><pre>{escape(curl)}</pre>"
        "<p class=soft>The row is an example.</p>"
        "<p class=soft>If the service has keys, add <code>-H 'Authorization: Bearer KEY'</code>. One request may "
        "hold many rows; the predictions have the same order.</p>"
        f"<h2>Response</h2><pre>{escape(answered)}</pre>"
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
