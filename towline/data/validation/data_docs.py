"""The validation report: one HTML page that needs no other file."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from towline.data.schema.contract import Contract
from towline.data.sources import Dataset
from towline.data.validation.custom_rules import Rule
from towline.html import render_page


def render_report(
    name: str, dataset: Dataset, contract: Contract, rules: Sequence[Rule], notes: Sequence[str], now: dt.datetime
) -> str:
    """Renders the page; every value is escaped, nothing is linked."""
    failed = sum(not rule.passed and rule.severity == "error" for rule in rules)
    warned = sum(not rule.passed for rule in rules) - failed
    return render_page(
        Path(__file__).with_name("data_docs.html.jinja"),
        name=name,
        dataset=dataset,
        contract=contract,
        rules=rules,
        notes=notes,
        now=now,
        failed=failed,
        warned_text=f", {warned} warned" if warned else "",
    )
