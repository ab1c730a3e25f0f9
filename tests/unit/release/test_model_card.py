"""The model card in Markdown and in HTML."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.support.checks import at_least_one
from tests.support.releases import TrainedRun, make_house_table
from towline.formatting import format_number
from towline.release.model_card import format_title
from towline.release.packaging import Release


def read(run: TrainedRun, packed: Release) -> tuple[str, str]:
    folder = run.settings.store / packed.path
    return (folder / "card.md").read_text(), (folder / "card.html").read_text()


def test_markdown_and_html_have_the_same_content(regression: TrainedRun, packed: Release) -> None:
    """Both have the name, metrics with intervals, the baseline and the columns."""
    mae = regression.evaluation.metrics["mae"]
    for text in at_least_one(read(regression, packed)):
        assert "house-value" in text
        assert f"{format_number(mae.low)} to {format_number(mae.high)}" in text
        assert format_number(regression.evaluation.baseline["mae"]) in text
        assert "doors" in text
        assert regression.work.dataset.digest in text


def test_text_of_users_is_escaped(regression: TrainedRun, packed: Release) -> None:
    """Markup in a description, a category, a note or a column name does not become markup."""
    markdown, html = read(regression, packed)
    assert "<script" not in html
    assert "<b>c" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert not re.search(r"(?<!\\)<", markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("| a \\`kind\\`, of sorts |")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (4, 5) for line in rows)


def test_the_html_needs_no_other_file(regression: TrainedRun, packed: Release) -> None:
    """Plots are embedded, and nothing is loaded."""
    html = read(regression, packed)[1]
    assert 'src="data:image/png;base64,' in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "url(" not in html


def test_each_row_of_a_markdown_table_has_the_cells_of_its_header(binary: TrainedRun) -> None:
    markdown = read(binary, binary.package())[0]
    tables = [table.splitlines() for table in re.findall(r"(?m)(?:^\|.*\n)+", markdown)]
    assert len(tables) >= 4
    for table in at_least_one(tables):
        assert len(table) > 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table


def test_numbers_have_their_unit(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """The range of amounts in metres and feet is in metres, that of prices in their currency."""
    table = make_house_table(200).drop(columns="sold")
    table["garden"] = ["10 ft" if row % 2 else f"{row} m" for row in range(len(table))]
    table["rent"] = [f"{100 + row % 150} €" for row in range(len(table))]
    run = build(tmp_path, table, "linear", target="value")
    for text in at_least_one(read(run, run.package())):
        assert "0 to 198 m" in text
        assert "100 to 249 €" in text


def test_titles_of_plots() -> None:
    assert format_title("predicted_vs_actual.png") == "Predicted vs actual"
