"""The result of a command."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class CommandResult:
    """The result of a command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)
