"""The validation report: one HTML page that needs nothing but itself."""

import datetime as dt
from collections.abc import Sequence

from jinja2 import Environment

from towline.data.schema.contract import Contract
from towline.data.sources import Dataset
from towline.data.validation.custom_rules import Rule

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: data validation</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6673; --line: #dfe3e8; --paper: #fff; --stripe: #f6f7f9;
  --pass: #1a7f4b; --warn: #9a6200; --fail: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3af; --line: #353b44; --paper: #16191e;
  --stripe: #1d2127; --pass: #5cc98f; --warn: #e0ac4a; --fail: #ff8a80 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 80rem; padding: 0 1.5rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem }
p, li { margin: .2rem 0 } .soft { color: var(--soft) } .wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .87rem }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink) }
th, td { padding: .4rem .7rem .4rem 0; vertical-align: top } td { border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th.rule { min-width: 21em } td { overflow-wrap: break-word }
td.key { white-space: nowrap; overflow-wrap: normal } code { font-size: .82rem }
.passed { color: var(--pass) } .warned { color: var(--warn) } .failed { color: var(--fail) }
.result { font-weight: 600 } ul.examples { list-style: none; margin: 0; padding: 0 } .examples li { margin: 0 }
</style>
</head>
<body>
<h1>{{ name }}: data validation</h1>
<p class="result {{ 'failed' if failed else 'warned' if warned else 'passed' }}">
{% if failed %}Refused: {{ failed }} of {{ rules|length }} rules failed
{%- else %}Accepted: {{ rules|length }} rules checked{% endif %}{% if warned %}, {{ warned }} warned{% endif %}</p>
<p class="soft">{{ dataset.source }} · {{ '{:,}'.format(dataset.rows) }} rows × {{ dataset.columns|length }} columns
{%- if dataset.start %} · {{ dataset.start }} to {{ dataset.end }}{% endif %} · checked {{ now }}<br>
sha256 <code>{{ dataset.digest }}</code></p>
<h2>Rules</h2>
<div class="wide"><table>
<thead><tr><th>Result</th><th>Severity</th><th>Column</th><th class="rule">Rule and what was observed</th>
<th class="number">Rows</th><th class="number">Share</th><th>Examples</th></tr></thead>
<tbody>
{%- for rule in rules %}
<tr><td class="key result {{ rule.result }}">{{ rule.result }}</td><td>{{ rule.severity }}</td>
<td>{{ rule.column if rule.column is not none else '' }}</td>
<td>{{ rule.detail }}<br><code class="soft">{{ rule.rule }}</code></td>
<td class="number">{{ '{:,}'.format(rule.count) if rule.count else '' }}</td>
<td class="number">{{ '{:.2%}'.format(rule.share) if rule.count else '' }}</td>
<td>{% if rule.examples %}<ul class="examples">{% for example in rule.examples %}<li>{{ example }}</li>{% endfor %}</ul>
{%- endif %}</td></tr>
{%- endfor %}
</tbody></table></div>
<h2>Columns</h2>
<div class="wide"><table>
<thead><tr><th>Column</th><th>Kind</th><th>Role</th><th>Nulls</th><th class="number">Levels</th>
<th>Holds</th></tr></thead>
<tbody>
{%- for column in contract.columns %}
<tr><td>{{ column.name }}</td><td>{{ column.kind }}</td><td>{{ column.role }}</td>
<td>{{ 'yes' if column.nullable else 'no' }}</td><td class="number">{{ '{:,}'.format(column.levels) }}</td>
<td>{% if column.note %}left out: {{ column.note }}
{%- elif column.pii %}personal data: values are not shown
{%- elif column.kind == 'numeric' and column.min is not none %}{{ '{:.6g}'.format(column.min) }} to {{ '{:.6g}'.format(
column.max) }}
{%- elif column.categories %}{{ column.categories[:12]|join(', ') }}{{ ', …' if column.categories|length > 12 }}
{%- elif column.derive %}{{ column.derive|join(', ') }}{% endif %}
{%- if column.reason and not column.note %} ({{ column.reason }}){% endif %}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- if notes %}
<h2>Notes</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{%- endif %}
</body>
</html>
"""


def render_report(
    name: str, dataset: Dataset, contract: Contract, rules: Sequence[Rule], notes: Sequence[str], now: dt.datetime
) -> str:
    """The page as text; every value is escaped, nothing is linked."""
    failed = sum(not rule.passed and rule.severity == "error" for rule in rules)
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        name=name,
        dataset=dataset,
        contract=contract,
        rules=rules,
        notes=notes,
        now=f"{now:%Y-%m-%d %H:%M}",
        failed=failed,
        warned=sum(not rule.passed for rule in rules) - failed,
    )
