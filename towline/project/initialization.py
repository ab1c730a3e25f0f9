"""Creates a project, or adds a config to a project, from a table (`towline init`)."""

import math
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

from towline import files
from towline.config import PipelineConfig, Settings, SqlSource, bare_name, suggest
from towline.data.schema.values import parse_number
from towline.errors import ConfigError
from towline.html.notebook import render_table
from towline.project import template
from towline.project.config_text import parse_config, write_config_text
from towline.project.detection import guess_target, propose
from towline.project.proposal import Proposal
from towline.project.sample import TableSample, check_rows, read_sample
from towline.remote_files import is_url, local_path, name_of

_DATABASE = re.compile(r"(postgresql|sqlite|mysql|mariadb|mssql|oracle)(?=(\+\w+)?://)")


class InitResult(NamedTuple):
    """The written files.

    Attributes:
        config: path of the config.
        proposal: its decisions with their reasons.
        pipeline: the config.
        project: folder of the project.
        written, existing: files of the project that were written, and that existed and were not changed.
    """

    config: Path
    proposal: Proposal
    pipeline: PipelineConfig
    project: Path
    written: tuple[str, ...]
    existing: tuple[str, ...]

    def _repr_html_(self) -> str:
        return render_table(("key", "value", "reason"), self.proposal.assumptions)


class TableReader:
    """Reads a table once, so that a proposal can be made again with another answer.

    Args:
        data: path or URL of a CSV, Parquet or JSON file, a folder or glob pattern of them; or the URL of a database.
        query: of the database.
        settings: name the project.
    """

    def __init__(self, data: str, query: str | None, settings: Settings) -> None:
        self.project = settings.project
        self.source, self.default_name = _parse_source(data, query, self.project)
        self._folder = tempfile.TemporaryDirectory(prefix="towline-init-")
        self.sample: TableSample = read_sample(self.source, self.project, Path(self._folder.name))
        check_rows(self.sample)

    @property
    def columns(self) -> list[str]:
        return [str(name) for name in self.sample.table.column_names]

    def find_column(self, name: str, option: str) -> str:
        """The column of this name; blanks and quotes around the name in the header need not be given.

        Raises:
            ConfigError: the table does not have the column; a header that is a row of values is named as a cause.
        """
        matching = [column for column in self.columns if bare_name(column) == bare_name(name)]
        if name not in self.columns and len(matching) != 1:
            remedy = suggest(name, self.columns)
            if any(math.isfinite(parse_number(column)) for column in self.columns):
                remedy += "; if these are values, add a first line with the names of the columns"
            raise ConfigError(f"the table has no column {name!r}", where=option, remedy=remedy)
        return name if name in self.columns else matching[0]

    def guess_target(self) -> str:
        """The likeliest column to predict.

        Raises:
            ConfigError: the header has values instead of names.
        """
        values = [name for name in self.columns if "." in name and math.isfinite(parse_number(name))]
        if values:
            what = f"the first line has numbers, such as {values[0]}, not the names of columns"
            remedy = "add a first line with the names of the columns; if the numbers are names, give --target"
            raise ConfigError(what, where="header of the table", remedy=remedy)
        return guess_target(self.columns)

    def propose(self, target: str | None, name: str | None, time: str | None) -> Proposal:
        """Proposes a config; see ``detection.propose``. Without a target the likeliest column is taken."""
        chosen = target or self.guess_target()
        time = self.find_column(time, "--time") if time else time
        return propose(self.sample, name or self.default_name, self.source, chosen, time)

    def close(self) -> None:
        """Removes the sample."""
        self._folder.cleanup()


def _parse_source(data: str, query: str | None, project: Path) -> tuple[str | SqlSource, str]:
    """``data.source`` and the name of a pipeline."""
    data = local_path(data)
    if is_url(data) and query:
        return SqlSource(url=data, query=query), "model"
    if query:
        raise ConfigError("a query needs the URL of a database", where=data, remedy="leave out --query")
    if scheme := _DATABASE.match(data):
        raise ConfigError("a database needs a query", where=scheme[0], remedy="give --query 'SELECT ...'")
    if is_url(data):
        return data, pipeline_name(name_of(data))
    place = Path(data).absolute()
    inside = place.is_relative_to(project)
    return place.relative_to(project).as_posix() if inside else str(place), pipeline_name(place.name)


def pipeline_name(text: str) -> str:
    """A name that a pipeline may have, from the name of a file.

    Example:
        >>> pipeline_name("Größe der Häuser 2026.csv.gz")
        'grosse-der-hauser-2026'
    """
    letters = unicodedata.normalize("NFKD", text.partition(".")[0].casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63] or "model"


def write_config(proposal: Proposal, settings: Settings, *, force: bool = False) -> InitResult:
    """Writes the config of a proposal, and the files of a project where there is none.

    Args:
        proposal: of a table.
        settings: name the project.
        force: replace a config of the same name.

    Raises:
        ConfigError: a config of this name exists.
        TransientError: the folder cannot be written.
    """
    project, file_name = settings.project, f"{proposal.name.replace('-', '_')}.yaml"
    path = project / "configs" / file_name
    if path.exists() and not force:
        raise ConfigError(
            "a config of this name exists", where=str(path), remedy="give another --name, or --force to replace it"
        )
    pipeline = parse_config(proposal)
    written: list[str] = []
    existing: list[str] = []
    if not template.has_project(project):
        written, existing = template.write_project(project, proposal.name, file_name)
    files.write(path, write_config_text(proposal), 0o644)
    return InitResult(path, proposal, pipeline, project, tuple(written), tuple(existing))
