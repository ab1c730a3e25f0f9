"""Commands that run in this process."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner

from towline.cli import main


@dataclass
class CommandResult:
    """The result of a command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_command(*words: object) -> CommandResult:
    """Runs a command in this process: ``run_command("keys", "list").code``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["towline", *map(str, words)])  # errors look for --json there
        result = CliRunner().invoke(main, sys.argv[1:], prog_name="towline")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)
