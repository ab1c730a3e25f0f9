"""How a command ended."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class CommandResult:
    """How a command ended. ``out`` is what a script reads, ``err`` what a person sees besides."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)
