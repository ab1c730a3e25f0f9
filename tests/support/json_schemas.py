"""Files checked against the JSON schemas that check-jsonschema ships."""

from pathlib import Path

from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from tests.support.commands import CommandResult


def check_file(file: Path, schema: str) -> CommandResult:
    """Checks a file against a schema by its name; needs no network."""
    arguments = ["--builtin-schema", schema, "--output-format", "json", str(file)]
    result = CliRunner().invoke(check_jsonschema, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)
