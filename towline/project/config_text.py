"""A proposal as the YAML text of a config, with a comment for each decision."""

from typing import Any

import yaml

from towline.config import PipelineConfig, SqlSource, build_config, strict_yaml
from towline.project.proposal import Proposal

WIDTH = 34  # column at which comments start


def write_config_text(proposal: Proposal) -> str:
    """The YAML of a config; a run accepts it unedited."""
    rows = f"{'all' if proposal.is_complete else 'a sample of the'} {proposal.rows:,} rows"
    lines = [
        f"# Proposed by `towline init` from {rows}. Each comment gives the reason;",
        "# docs/config.md describes every key, and `towline validate` checks an edited file.",
        f"name: {_scalar(proposal.name)}",
        f"description: {_scalar(f'Predicts {proposal.target}.')}",
        _line(f"task: {proposal.task}", f"from the values of {proposal.target}"),
        "",
        *_data(proposal),
        "",
        "# features:  # computed from the columns of a row, equally in training and serving; docs/features.md",
        "#   ratio: a / nullif(b, 0)",
        "#   weekend: weekday(at) >= 5",
        "# lookups:  # columns of a second table, joined by a key of the row",
        "#   shops: {table: data/shops.csv, key: shop_id, columns: [size, region]}",
        "",
        *_validation(proposal),
        "",
        "split:",
        _line(f"  by: {'time' if proposal.by_time else 'random'}", proposal.split_reason),
        _line("  holdout: 0.2", "share of rows that the model is evaluated on; with a split by time also e.g. 28d"),
        "",
        "candidates:",
        _line("  - linear", "the baseline is always added"),
        "  - forest",
        _line("  - boosting", "also, if they are installed: lightgbm, xgboost, catboost"),
        _line("  - ensemble", "their weighted mean; selected unless it is clearly worse than the best of them"),
        _line("budget: 10m", "time for a training; on large tables, slow candidates are reduced or left out"),
        "",
    ]
    if proposal.folds != 5:
        folds = _line(f"  folds: {proposal.folds}", "the table has few distinct times")
        lines += ["cross_validation:", folds, ""]
    if proposal.task != "regression":
        lines += [
            _line("calibrate: null", "isotonic or sigmoid: calibrates probabilities; docs/config.md"),
            "",
        ]
    lines += ["evaluation:", _line(f"  metric: {proposal.metric}", proposal.metric_reason)]
    if proposal.slices:
        lines.append(_line(f"  slices: {_scalar(proposal.slices)}", "groups of rows that are evaluated separately"))
    lines += [
        "",
        "gate:",
        _line("  baseline_margin: 0.0", "a model must be better than the baseline by this relative margin"),
        _line("  champion_margin: 0.02", "accepted relative loss against the champion"),
        "",
    ]
    if proposal.pii:
        lines += ["privacy:", *_items("  pii:", proposal.pii), ""]
    lines += ["drift:", _line("  false_alarms_per_year: 4", "budget of false alarms")]
    return "\n".join(lines) + "\n"


def parse_config(proposal: Proposal) -> PipelineConfig:
    """The config of a proposal, as its YAML text is read."""
    raw, tree = strict_yaml.parse(write_config_text(proposal), "the proposed config")
    return build_config(raw, "the proposed config", tree)


def _data(proposal: Proposal) -> list[str]:
    source = proposal.source
    if isinstance(source, SqlSource):
        lines = ["data:", "  source:", f"    url: {_scalar(source.url)}", f"    query: {_scalar(source.query)}"]
    else:
        lines = ["data:", f"  source: {_scalar(source)}"]
    lines.append(f"  target: {_scalar(proposal.target)}")
    lines.append(_line(f"  time: {_scalar(proposal.time)}", proposal.time_reason))
    if proposal.rows_per_day:
        lines.append(f"  # rows per day: {proposal.rows_per_day:,.1f}")
    if proposal.group:
        reason = "rows with the same value are in one part of a split"
        lines.append(_line(f"  group: {_scalar(proposal.group)}", reason))
    lines += _items("  drop:", proposal.drop)
    if proposal.kinds:
        lines.append("  columns:")
        lines += [_line(f"    {_scalar(name)}: {kind}", reason) for name, (kind, reason) in proposal.kinds.items()]
    lines += _items("  na_values:", proposal.na_values)
    lines += _items("  ignore_case:", proposal.ignore_case)
    lines += _formats(proposal)
    if proposal.positive is not None:
        reason = "the class that scores and thresholds are about"
        lines.append(_line(f"  positive: {_scalar(proposal.positive)}", reason))
    if proposal.max_unlabelled:
        lines.append(_line(f"  max_unlabelled: {proposal.max_unlabelled}", proposal.unlabelled))
    unlisted = proposal.coerced | proposal.approximate_reasons
    lines += [_line(f"  # {_scalar(name)}", reason) for name, reason in unlisted.items()]
    for name, reason in proposal.ignored.items():
        lines.append(_line(f"  # {_scalar(name)} is not used", reason))
    return lines


def _formats(proposal: Proposal) -> list[str]:
    lines = [
        f"  {key}: {_scalar(value)}"
        for key, default in (("separator", ","), ("decimal", "."), ("thousands", ""))
        if (value := getattr(proposal, key)) != default
    ]
    if proposal.date_formats:
        lines.append("  date_format:")
        lines += [f"    {_scalar(name)}: {_scalar(fmt)}" for name, fmt in proposal.date_formats.items()]
    return lines


def _validation(proposal: Proposal) -> list[str]:
    lines = [
        "validation:",
        _line(
            f"  min_rows: {proposal.min_rows}",
            f"the table has {proposal.rows - proposal.unlabelled_rows - proposal.summary_rows:,} with a target",
        ),
    ]
    if proposal.rules:
        lines.append("  columns:  # what holds today, with a margin; severity: error stops a run")
        lines += [f"    {_scalar(name)}: {_scalar(rule)}" for name, rule in proposal.rules.items()]
    if proposal.expectations:
        lines.append("  expectations:  # of Great Expectations, by their own names")
        for expectation in proposal.expectations:
            lines += [
                f"    - type: {expectation['type']}",
                f"      kwargs: {_scalar(expectation['kwargs'])}",
                f"      severity: {expectation['severity']}",
            ]
    return lines + _items("  allow_leaks:", proposal.allow_leaks)


def _items(head: str, reasons: dict[str, str]) -> list[str]:
    """A list with a comment at each item; no lines if it is empty."""
    return [head, *(_line(f"    - {_scalar(name)}", reason) for name, reason in reasons.items())] if reasons else []


def _line(text: str, comment: str) -> str:
    comment = " ".join(comment.split())
    return f"{text:<{WIDTH}} # {comment}" if comment else text


class _Dumper(yaml.SafeDumper):
    """Writes each text on one line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if not text.isprintable() else None)


_Dumper.add_representer(str, _represent_text)


def _scalar(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )  # fmt: skip
    return str(text).removesuffix("\n").removesuffix("\n...")
