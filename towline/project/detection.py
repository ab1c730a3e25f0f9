"""Proposes a config for a table without a description.

A proposal is made from a sample (``project.sample``) with the functions that a run uses: ``load_dataset`` reads the
values, ``infer_contract`` gives kinds and the task, ``find_leaks`` finds leaks. This module adds the decisions that a
person would write into a config: time, group, columns to drop, personal data, and the split.
"""

import datetime as dt
import math
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import DEFAULT_METRIC, DataConfig, SqlSource, build_config
from towline.data.schema import text_columns
from towline.data.schema.contract import Contract
from towline.data.schema.detection import notation
from towline.data.schema.detection.task import find_texts_among_numbers
from towline.data.schema.detection.time_column import find_date_parts, suggest_time_column
from towline.data.schema.inference import infer_contract
from towline.data.schema.values import PLAIN, TEXT_KINDS, ValueFormat, find_case_variants, is_null_marker, parse_boolean
from towline.data.source.source_columns import is_readable
from towline.data.source.sources import SUMMARIES, UNLABELLED, load_dataset, read_snapshot
from towline.data.validation.leakage import find_leaks
from towline.errors import ConfigError, DataError
from towline.project.expectations import propose_expectations, propose_slices
from towline.project.personal_data import SAMPLE, detect_personal, may_be_personal_numbers, split_words
from towline.project.proposal import Proposal
from towline.project.sample import TableSample

MIN_TIMES = 8  # distinct times that a split by time needs: a holdout and a part before each fold
MIN_GROUPS = 10
_MAX_NULL_TEXTS = 5  # different ones in the time column
MAX_SPELLINGS = 20  # of yes and no; a target of texts has at least as many levels before most of them may be different
_GROUP_WORDS = {
    "subject", "patient", "person", "user", "customer", "client", "household", "participant", "student", "case",
    "individual", "animal", "family", "account", "member", "pig", "device",
}  # fmt: skip
# words in which "id" is no word of its own, as it is in "distid"
_NO_IDS = {
    "acid", "aid", "android", "avoid", "bid", "covid", "fluid", "grid", "humid", "hybrid", "invalid", "kid", "lipid",
    "liquid", "mid", "overpaid", "paid", "plaid", "prepaid", "pyramid", "raid", "rapid", "rigid", "solid", "steroid",
    "thyroid", "unpaid", "valid", "void",
}  # fmt: skip
# texts that are no level of a category; NA may be one among short codes, such as those of countries, and None a level
# numbers that often mean null: they are so if all other numbers of a column are far from them
_SENTINELS = (-99_999.0, -9_999.0, -999.0, -99.0, 9_999.0, 99_999.0, 999_999.0)
_MIN_SENTINELS = 3  # rows with one of them
_ALWAYS_NULL = {"N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "NaN", "nan"}
_TARGET_WORDS = {"target", "label", "class", "outcome", "y", "churn", "churned", "response", "result"}
_PLAIN_DECIMAL = r"^\s*[+-]?(\d+\.(\d{1,2}|\d{4,})|0\.\d+|\d{4,}\.\d+)\s*$"  # its point separates no thousands


def guess_target(names: list[str]) -> str:
    """The column that is named like a target, else the last one."""
    named = [name for name in names if set(split_words(name)) & _TARGET_WORDS]
    return named[-1] if named else names[-1]


def propose(sample: TableSample, name: str, source: str | SqlSource, target: str, time: str | None = None) -> Proposal:
    """Proposes a config.

    Args:
        sample: of the table.
        name: of the pipeline.
        source: as the config names it.
        target: the column to predict.
        time: the column with the time of each row; "": no column; None: it is detected.

    Raises:
        ConfigError: the target cannot be predicted.
        DataError: the table cannot be read.
    """
    names = sample.table.column_names
    proposal = Proposal(
        name=name, source=source, target=target, rows=sample.rows, columns=len(names), is_complete=sample.is_complete,
        separator=sample.separator,
    )  # fmt: skip
    proposal.drop |= unreadable_columns(sample.table, target)
    _propose_formats(proposal, sample.table)
    _propose_numeric(proposal, sample.table)
    frame, contract = read_table(proposal, sample)
    _propose_booleans(proposal, frame)
    _propose_personal(proposal, frame)
    _propose_ignore_case(proposal, frame, contract)
    _propose_na_values(proposal, sample.table, contract)
    _propose_sentinels(proposal, frame)
    if proposal.kinds or proposal.ignore_case or proposal.na_values:
        frame, contract = read_table(proposal, sample)
    _check_target(frame[target], contract)
    _propose_max_unlabelled(proposal, sample)
    proposal.task = contract.task
    _propose_metric(proposal, frame)
    _propose_drop(proposal, frame, contract)
    measured = [column.name for column in contract.columns if column.format.measure != "number"]
    _propose_time(proposal, sample.table, frame.drop(columns=measured), contract, time)
    if not proposal.time:
        _propose_group(proposal, frame, contract)
    frame, contract = read_table(proposal, sample)
    _propose_split(proposal, frame)
    contract = _propose_leaks(proposal, frame, contract)
    if contract.task == "binary" and contract.positive is not None:
        proposal.positive = str(contract.target_column.reader.spell(contract.positive) or contract.positive)
    _note_ignored(proposal, contract)
    propose_expectations(proposal, frame, contract)
    propose_slices(proposal, frame, contract)
    return proposal


def unreadable_columns(table: pa.Table, target: str) -> dict[str, str]:
    """The columns of lists, structs or bytes, which a run cannot read, with the reason."""
    return {
        field.name: f"holds {str(field.type)[:40]}, not numbers, text, booleans or times"
        for field in table.schema
        if field.name != target and not is_readable(field.type)
    }


def _propose_formats(proposal: Proposal, table: pa.Table) -> None:
    """Null markers, decimal marks and date formats of columns that are text."""
    chosen, able = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    has_points = False
    for name in table.column_names:
        if not text_columns.is_text(table[name].type):
            continue
        column = text_columns.large_text(table[name])
        if not text_columns.is_text((typed := text_columns.infer_text(column, PLAIN)).type):
            has_points |= pa.types.is_floating(typed.type) and _has_points(column)
            continue
        series = column.to_pandas().rename(name)
        detected = notation.detect_notation(series)
        if detected is None or not detected.formats:
            continue
        fmt = _choose_format(series, detected.formats)
        if fmt.date_format and detected.share > 1 - 1e-9:
            proposal.date_formats[name] = fmt.date_format
            if other := next((each.date_format for each in detected.formats if each != fmt), None):
                proposal.other_date_formats[name] = other
        elif not fmt.date_format:
            chosen[fmt.decimal, fmt.thousands] += 1
            able.update((other.decimal, other.thousands) for other in detected.formats)
    if able:
        decimal, thousands = max(able, key=lambda marks: (able[marks], chosen[marks]))
        if decimal == "." or not has_points:
            proposal.decimal, proposal.thousands = decimal, thousands


def _has_points(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(column.slice(0, 10_000), _PLAIN_DECIMAL)).as_py())


def _choose_format(series: pd.Series, formats: tuple[ValueFormat, ...]) -> ValueFormat:
    """The format that reads a column; of day-first and month-first, the one in which the rows are nearer to sorted."""
    if len(formats) == 1:
        return formats[0]
    if not formats[0].date_format:
        grouped = series.dropna().astype(str).str.strip().str.fullmatch(r"[+-]?\d{1,3}([.,]\d{3})+").all()
        return next((fmt for fmt in formats if bool(fmt.thousands) == bool(grouped)), formats[0])
    column = pa.chunked_array([pa.array(series, pa.large_string(), from_pandas=True)])

    def disorder(fmt: ValueFormat) -> float:
        times = pd.Series(text_columns.parse_times(column, fmt)[0]).dropna()
        return float((times.diff().dt.total_seconds().abs()).sum())

    return min(formats, key=disorder)


def read_table(proposal: Proposal, sample: TableSample) -> tuple[pd.DataFrame, Contract]:
    """The sample as a run reads it. Rows without a target are left out, however many they are."""
    data = {**proposal.data_section(), "source": list(map(str, sample.parts)), "max_unlabelled": 1.0}
    pii = [name for name in proposal.pii if name not in proposal.drop]
    config = build_config({"name": proposal.name, "data": data, "privacy": {"pii": pii}}, "the proposed config")
    with tempfile.TemporaryDirectory(prefix="towline-init-") as folder:
        store = Path(folder)
        try:
            dataset = load_dataset(config.data, store, store, None, pii)
        except DataError as error:
            if sample.table[proposal.target].null_count == sample.table.num_rows:
                what, remedy = f"the target {proposal.target!r} has no values", "name another column with --target"
                raise DataError(what, where="data.target", remedy=remedy) from None
            what, where = error.what, proposal.source if isinstance(proposal.source, str) else "the query"
            for part, file in zip(sample.parts, sample.files, strict=False):
                what = what.replace(part.name, Path(file).name)
                where = file if str(part) in error.where else where
            raise DataError(what, where=where, remedy=error.remedy, details=error.details) from None
        frame = read_snapshot(dataset, store)
    proposal.coerced = {
        values.column: f"{values.count} value{'s' * (values.count != 1)} read as null: "
        + ("not a time" if values.kind == "datetime" else "not a number")
        for values in dataset.coerced
    }
    left_out = dict(dataset.left_out)
    proposal.summary_rows = left_out.get(SUMMARIES, 0)
    # rounded up: a sample may have fewer rows
    unlabelled = left_out.get(UNLABELLED, 0)
    proposal.unlabelled_rows = -(-unlabelled * sample.rows // sample.table.num_rows)
    contract = infer_contract(frame, config, dataset.formats)
    proposal.approximate = {}
    for column in contract.columns:
        if column.format.measure == "approximate" and column.name not in proposal.pii:
            texts = text_columns.large_text(sample.table[column.name])
            if examples := notation.find_approximate_numbers(texts, column.format):
                proposal.approximate[column.name] = examples[0]
    return frame, contract


def _propose_numeric(proposal: Proposal, table: pa.Table) -> None:
    """Columns of numbers with more texts among them than a run reads as null on its own, such as unknown or <0.5.

    Of the target, rows with these texts are left out, also if they are few.
    """
    fmt = ValueFormat(decimal=proposal.decimal, thousands=proposal.thousands)
    for name in table.column_names:
        if not text_columns.is_text(table[name].type):
            continue
        column = text_columns.large_text(table[name])
        read = notation.read_text_column(column, fmt, DataConfig.model_fields["max_unreadable"].default).values
        if not text_columns.is_text(read.type):
            continue
        is_target, present = name == proposal.target, read.drop_null().to_pandas()
        texts = find_texts_among_numbers(present, fmt) if is_target else notation.find_words_among_numbers(column, fmt)
        if texts:
            what = "rows have" if is_target else "values are"
            then = "are left out" if is_target else "are read as null"
            share = present.isin(texts).mean()
            reason = f"{share:.1%} of the {what} other texts, such as {texts[0][:20]!r}, and {then}"
            proposal.kinds[name] = "numeric", reason


def _propose_booleans(proposal: Proposal, frame: pd.DataFrame) -> None:
    """Columns of yes and no in more than two spellings, such as ``Yes``, ``yes`` and ``Y``."""
    for name in frame.columns:
        texts = [] if frame[name].dtype.kind in "biufM" else frame[name].dropna().unique().tolist()
        flags = {parse_boolean(text) for text in texts[:MAX_SPELLINGS]}
        if 2 < len(texts) <= MAX_SPELLINGS and flags == {0.0, 1.0}:
            proposal.kinds[name] = "boolean", f"yes and no in {len(texts)} spellings"


def _propose_na_values(proposal: Proposal, table: pa.Table, contract: Contract) -> None:
    """Null markers among the levels of text that are also in columns of other kinds, or cannot be levels.

    NA is a level of a category if most of its other levels are codes of two or three capital letters.
    """
    markers = {
        column: _find_null_markers(text_columns.large_text(table[column.name]))
        for column in contract.columns
        if column.name in table.column_names and text_columns.is_text(table[column.name].type)
    }
    codes = {
        column.name: _has_short_codes(table[column.name]) for column, present in markers.items() if "NA" in present
    }
    always = _ALWAYS_NULL | (set() if any(codes.values()) else {"NA"})
    others = {marker for column, present in markers.items() if column.kind not in TEXT_KINDS for marker in present}
    for column, present in markers.items():
        for marker in sorted(present & (others | always)) if column.kind in TEXT_KINDS else ():
            reason = "as in columns of other kinds" if marker in others else f"as in {column.name}"
            proposal.na_values.setdefault(marker, f"means null in every column, {reason}")


def _propose_sentinels(proposal: Proposal, frame: pd.DataFrame) -> None:
    """Numbers such as -999 that mean null, unless they are an ordinary value of some column."""
    numbers = {name: frame[name].to_numpy(float) for name in frame.columns if frame[name].dtype.kind in "iuf"}
    texts = [frame[name] for name in frame.columns if frame[name].dtype.kind not in "iufbM"]
    for sentinel in _SENTINELS:
        names, text = [name for name, values in numbers.items() if (values == sentinel).any()], f"{sentinel:.0f}"
        is_level = any((values == text).any() for values in texts)
        if names and not is_level and all(_is_far(numbers[name], sentinel) for name in names):
            proposal.na_values[text] = f"means null in every column: the other numbers of {names[0]} are far from it"


def _is_far(values: np.ndarray, sentinel: float) -> bool:
    """Whether a number repeats, and all others have another sign, or a tenth of its size."""
    others = values[np.isfinite(values) & ~np.isin(values, _SENTINELS)]
    if np.count_nonzero(values == sentinel) < _MIN_SENTINELS or len(np.unique(others)) < _MIN_SENTINELS:
        return False
    return bool((sentinel < 0 <= others.min()) or abs(sentinel) > 10 * np.abs(others).max())


def _find_null_markers(column: pa.ChunkedArray) -> set[str]:
    """The texts of a column that mean null among numbers and times, without blanks and infinities."""
    import pyarrow.compute as pc

    texts = pc.unique(pc.utf8_trim_whitespace(column)).drop_null().to_pylist()
    return {text for text in texts if text and "inf" not in text.lower() and is_null_marker(text)}


def _has_short_codes(column: pa.ChunkedArray) -> bool:
    """Whether most values of a column of text, but for NA, are codes of two or three capital letters."""
    levels = {text.strip() for text in text_columns.large_text(column).unique().drop_null().to_pylist()} - {"", "NA"}
    return 2 * sum(re.fullmatch("[A-Z]{2,3}", level) is not None for level in levels) > len(levels)


def _propose_ignore_case(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> None:
    """Categories with levels that differ in case and spaces only, except codes of one letter, such as a and A."""
    for column in contract.columns:
        if column.role == "ignored" or column.name in proposal.kinds or column.name in proposal.pii:
            continue
        if column.kind != "category" or frame[column.name].dtype.kind in "biufM":
            continue
        levels = frame[column.name].dropna().unique().tolist()
        variants = find_case_variants(map(str, levels))
        if variants and any(len(group[0].strip()) > 1 for group in variants):
            examples = " and ".join(repr(level) for level in variants[0][:3])
            proposal.ignore_case[column.name] = f"{examples} are one level"


def _check_target(target: pd.Series, contract: Contract) -> None:
    """Refuses a target of one value, or of texts of which most are different.

    Raises:
        ConfigError: the target has one value, or is text with mostly different values.
    """
    levels, what = target.nunique(), ""
    if levels == 1:
        what = "has only one value"
    elif contract.task == "multiclass" and levels > max(MAX_SPELLINGS, 0.5 * len(target)):
        what = f"has {levels:,} different texts in {len(target):,} rows"
    if what:
        remedy = "name a column of numbers or classes with --target"
        raise ConfigError(f"the target {contract.target!r} {what}", where="data.target", remedy=remedy)


def _propose_max_unlabelled(proposal: Proposal, sample: TableSample) -> None:
    """Raises the limit of rows without a target where the table has more of them."""
    share = proposal.unlabelled_rows / sample.rows
    if share:
        proposal.unlabelled = f"{share:.1%} of the rows have no target and are left out"
    if share > DataConfig.model_fields["max_unlabelled"].default:
        proposal.max_unlabelled = min(1.0, math.ceil(share * 20 + 1) / 20)


def _propose_personal(proposal: Proposal, frame: pd.DataFrame) -> None:
    for name in frame.columns:
        values = frame[name].dropna()
        if name == proposal.target or values.empty or values.dtype.kind in "bM":
            continue
        distinct = values.drop_duplicates()
        if values.dtype.kind in "iuf" and not may_be_personal_numbers(name):
            continue
        what = detect_personal(name, [str(text) for text in distinct.head(SAMPLE)], len(distinct) / len(values))
        if what:
            proposal.pii[name] = f"looks like {what}"


def _propose_drop(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> None:
    """Drops empty columns, constants, and identifiers of the row."""
    reasons = {}
    for column in contract.columns:
        if column.role != "ignored" or column.name in proposal.pii:
            continue
        if column.note.startswith("identifies the row"):
            reasons[column.name] = "identifies the row: another value in each row"
        elif column.note in ("constant", "has no values"):
            reasons[column.name] = column.note
    if len(reasons) < frame.shape[1] - 1:  # for a table with identifiers only, the run reports an error
        proposal.drop |= reasons


def _propose_time(
    proposal: Proposal, table: pa.Table, frame: pd.DataFrame, contract: Contract, given: str | None
) -> None:
    if given is not None:
        proposal.time, proposal.time_reason = given or None, "given"
        proposal.drop.pop(given, None)
        return
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    suggested = suggest_time_column(frame, proposal.target, now + dt.timedelta(hours=14))  # local time may be ahead
    if suggested is None:
        proposal.time_reason = "no column has the time of each row"
        return
    if suggested.name in proposal.coerced and not _propose_null_times(proposal, table, contract, suggested.name):
        _propose_time(proposal, table, frame.drop(columns=suggested.name), contract, given)
        return
    proposal.time, proposal.time_reason = suggested.name, suggested.evidence
    if undated := float(frame[suggested.name].isna().mean()):
        proposal.time_reason += f"; {undated:.2%} of the rows have no time and are left out"
    if suggested.date_format:
        proposal.date_formats[suggested.name] = suggested.date_format
    proposal.drop.pop(suggested.name, None)
    proposal.pii.pop(suggested.name, None)


def _propose_null_times(proposal: Proposal, table: pa.Table, contract: Contract, name: str) -> bool:
    """Texts that mean null in the time column, if they are few; returns whether they are."""
    fmt = next(column.format for column in contract.columns if column.name == name)
    texts = text_columns.large_text(table[name])
    unread = texts.filter(pa.array(text_columns.parse_times(texts, fmt)[1])).unique().to_pylist()
    if len(unread) > _MAX_NULL_TEXTS:
        return False
    proposal.na_values |= {text.strip(): f"means null in every column: no time in {name}" for text in unread}
    if fmt.date_format:
        proposal.date_formats[name] = fmt.date_format
    del proposal.coerced[name]
    return True


def _propose_group(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> None:
    """A column that numbers persons or things with several rows each."""
    for column in contract.columns:
        values = frame[column.name]
        codes = column.kind == "category" or (column.kind == "numeric" and column.integer)
        if column.role != "feature" or not codes or column.name in proposal.drop or values.isna().any():
            continue
        if MIN_GROUPS <= column.levels <= 0.6 * len(frame) and _names_group(split_words(column.name), values):
            proposal.group = column.name
            proposal.pii.pop(column.name, None)
            return


def _names_group(words: list[str], values: pd.Series) -> bool:
    """Whether a column's name says that it identifies a person or thing."""
    if not words:
        return False
    if words[-1] in ("id", "nr", "uuid"):
        return True
    in_blocks = int((values != values.shift()).sum()) <= 1.2 * values.nunique()  # rows of one member stand together
    if words[-1].endswith("id") and words[-1] not in _NO_IDS:
        return in_blocks
    if words[0] not in _GROUP_WORDS:
        return False
    if len(words) > 1:
        return words[-1] in ("number", "no", "num", "code", "key")
    return values.dtype.kind not in "iuf" or in_blocks  # a number called "member" may be a count


def _propose_metric(proposal: Proposal, frame: pd.DataFrame) -> None:
    """The default of the task; but if most targets have one value, no model can beat that constant by mae."""
    proposal.metric = DEFAULT_METRIC[proposal.task]
    if proposal.task != "regression":
        return
    shares = frame[proposal.target].value_counts(normalize=True)
    if len(shares) and shares.iloc[0] > 0.5:
        proposal.metric = "rmse"
        value = f"{shares.iloc[0]:.0%} of the targets are {shares.index[0]:g}"
        proposal.metric_reason = f"{value}: by mae, this constant would be the best"


def _propose_split(proposal: Proposal, frame: pd.DataFrame) -> None:
    if not proposal.time:
        proposal.split_reason = "no time column" if not proposal.group else "all rows of a group are in one part"
        return
    times = frame[proposal.time]
    distinct = times.nunique()
    order = np.argsort(times.to_numpy(), kind="stable")
    cut = times.iloc[order[int(len(order) * 0.8)]] if len(order) else None
    newest, older = frame[proposal.target][times >= cut], frame[proposal.target][times < cut]
    days = (times.max() - times.min()) / pd.Timedelta(days=1)
    proposal.rows_per_day = proposal.rows / days if days >= 1 else None
    if distinct < MIN_TIMES:
        proposal.split_reason = f"{distinct} distinct times are too few for a split by time"
        if parts := find_date_parts(frame):
            names = ", ".join([proposal.time, *parts])
            proposal.split_reason += f"; one column with the date of {names} would allow it"
    elif newest.nunique() < 2 or older.nunique() < 2 or len(newest) < 10:
        proposal.split_reason = "the newest rows have only one value of the target"
    else:
        proposal.by_time, proposal.split_reason = True, "trained on the past, evaluated on the newest rows"
        proposal.folds = int(min(5, max(2, distinct // 3)))


def _propose_leaks(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> Contract:
    """Drops leaks, until none is left; returns the contract of the other columns."""
    for _ in range(10):
        present = contract.model_copy(update={"columns": tuple(c for c in contract.columns if c.name in frame.columns)})
        leaks = find_leaks(frame, present, 42)
        leaks = tuple(leak for leak in leaks if not set(leak.columns) <= set(proposal.allow_leaks))
        certain = [leak for leak in leaks if not leak.may_be_legitimate]
        features = {column.name for column in present.columns if column.role == "feature"}
        gone = {name for leak in certain for name in leak.columns}
        if not leaks:
            break
        if features <= gone:  # without them no feature is left
            proposal.allow_leaks |= dict.fromkeys(gone, "the only columns; check that they are known in time")
            break
        for leak in leaks:
            for name in leak.columns:
                if leak.may_be_legitimate:
                    proposal.allow_leaks[name] = f"{leak.detail}; drop it if it is known only afterwards"
                else:
                    proposal.drop[name] = f"leak: {leak.detail}"
        frame.drop(columns=[name for name in gone if name in frame], inplace=True)
        contract = present.model_copy(update={"columns": tuple(c for c in present.columns if c.name in frame.columns)})
        for name in gone:
            proposal.date_formats.pop(name, None)
            proposal.pii.pop(name, None)
    return contract


def _note_ignored(proposal: Proposal, contract: Contract) -> None:
    for name in proposal.drop:
        proposal.date_formats.pop(name, None)
        proposal.pii.pop(name, None)
    proposal.ignored = {
        column.name: column.note for column in contract.columns
        if column.role == "ignored" and column.note and column.name not in proposal.drop
    }  # fmt: skip
