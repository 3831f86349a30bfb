"""Colours of every figure, and the empty figure to draw them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dprp_tf.files.arguments import check_choice
from dprp_tf.files.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FONT_SIZE", "MARKERS", "THEMES", "Theme", "new_figure", "theme_named"]

FONT_SIZE = 9.0
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; dense and DPRP keep theirs in every picture.

    The hues are Okabe and Ito's colour-blind-safe set, darkened on white and lightened on dark
    until small text in them is legible.

    Example:

    >>> THEMES["light"].model("dprp")
    '#0067a6'
    """

    background: str
    text: str
    muted: str
    grid: str
    before: str
    removed: str
    dense: str
    dprp: str
    others: tuple[str, ...]

    def model(self, name: str, index: int = 0) -> str:
        """Return the colour of a model; `index` tells apart those beside dense and DPRP."""
        fixed = {"dense": self.dense, "dprp": self.dprp}
        return fixed.get(name) or self.others[index % len(self.others)]


THEMES = {
    "light": Theme(
        background="#ffffff",
        text="#1f2328",
        muted="#59636e",
        grid="#e3e7ec",
        before="#c9d1d9",
        removed="#eceff2",
        dense="#b84a00",
        dprp="#0067a6",
        others=("#007a5a", "#a3407c", "#7d6500", "#59636e"),
    ),
    "dark": Theme(
        background="#161b22",
        text="#e6edf3",
        muted="#9aa4ae",
        grid="#2b323b",
        before="#4a535e",
        removed="#262c35",
        dense="#f39a5c",
        dprp="#5cb8ee",
        others=("#35c99f", "#e48fc2", "#e3c84f", "#9aa4ae"),
    ),
}


def theme_named(name: str) -> Theme:
    """Return a theme by its name.

    Raises:
        ValueError: If there is no such theme.

    Example:

    >>> theme_named("dark").background
    '#161b22'
    """
    check_choice("theme", name, sorted(THEMES))
    return THEMES[name]


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure, in inches, that touches no state of pyplot."""
    require("matplotlib", extra="report", feature="A figure")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.06, hspace=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=theme.background)
    FigureCanvasAgg(figure)
    return figure
