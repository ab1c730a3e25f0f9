"""The style of all plots, and how they are written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MODEL, BEFORE, SOFT, GRID = "#26323d", "#1f6f9f", "#c8553d", "#8f9ba6", "#e4e8eb"
LINES = (MODEL, "#c8553d", "#4f8f5b", "#8a63a8", "#b58a2a", "#4aa3a8", "#a34a74", "#5c6b7a")
STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a column's name may contain dollars
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "figure.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "patch.linewidth": 0,
}
DASHED = (0, (4, 3))
WIDTH = 6.4  # inches


@contextmanager
def styled() -> Iterator[None]:
    """Applies the style to plots that are drawn in the block."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that the font lacks are drawn as boxes
        yield


def blank(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; height and width in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.02, ha="left")


def legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with files.replacing(path) as file:
        FigureCanvasAgg(figure).print_png(file)
