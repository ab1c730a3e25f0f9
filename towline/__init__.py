"""towline trains, serves and monitors tabular models.

The functions of ``towline.__all__`` are the Python API; they have the names of the CLI's commands. They are imported on
first use, so ``import towline`` is quick and needs no optional package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towline.accountability import approvals, approve, served_at, verify
    from towline.api import (
        backtest,
        drift,
        init,
        load,
        models,
        promote,
        quality,
        rollback,
        run,
        score,
        show,
        validate,
    )
    from towline.config import PipelineConfig
    from towline.errors import TowlineError, TransientError, UserError
    from towline.inference.predictor import Model
    from towline.promotion.outcome import Outcome

__all__ = [
    "Model", "Outcome", "PipelineConfig", "TowlineError", "TransientError", "UserError", "__version__", "approvals",
    "approve", "backtest",
    "drift", "init", "load", "models", "promote", "quality", "rollback", "run", "score", "served_at", "show",
    "validate", "verify",
]  # fmt: skip
__version__ = "0.1.0"

_TYPES = {
    "Model": "towline.inference.predictor",
    "Outcome": "towline.promotion.outcome",
    "PipelineConfig": "towline.config",
    "TowlineError": "towline.errors",
    "TransientError": "towline.errors",
    "UserError": "towline.errors",
    "approvals": "towline.accountability",
    "approve": "towline.accountability",
    "served_at": "towline.accountability",
    "verify": "towline.accountability",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'towline' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_TYPES.get(name, "towline.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
