"""What the lessons share: one look for their figures, and where a figure goes.

What is known exactly is drawn in grey (bars and lines), what was learned or sampled as marks with a black edge, and the
one thing a figure is about in `ACCENT`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LIGHT, MIDDLE, DARK = "0.88", "0.68", "0.40"
ACCENT, SECOND = "#c8502d", "#2c6e9b"
BAR = 0.28  # width of one of three bars side by side


def sheet(title: str, panels: list[str], *, width: float = 9.6, height: float = 4.4, **options: Any) -> tuple[Any, Any]:
    """A figure whose title says what it shows, and its panels, each under a title of its own.

    Returns: (Figure, list of axes); `options` are those of `Figure.subplots`.
    """
    canvas = Figure(figsize=(width, height), layout="constrained")
    rows = canvas.subplots(1, len(panels), squeeze=False, **options)
    for axes, name in zip(rows[0], panels, strict=True):
        axes.set_title(name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return canvas, list(rows[0])


def mark(shape: str, colour: str = "black", face: str = "white") -> dict[str, Any]:
    """How something learned is drawn: marks without a line."""
    look: dict[str, Any] = {"marker": shape, "linestyle": "none", "markersize": 6, "markeredgewidth": 1.2}
    return {**look, "markeredgecolor": colour, "markerfacecolor": face, "zorder": 3, "clip_on": False}


def below(canvas: Any, handles: list[Any], labels: list[str], columns: int) -> None:
    """One legend under all panels."""
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def show(canvas: Any, name: str) -> Path | None:
    """Show a figure in a notebook, or else write NAME.png into the folder after `--out`, or the working folder.

    Returns: where it was written; None in a notebook.
    """
    notebook = sys.modules.get("IPython")
    if notebook is not None and notebook.get_ipython() is not None:
        picture = io.BytesIO()
        canvas.savefig(picture, dpi=110)
        notebook.display.display(notebook.display.Image(picture.getvalue()))
        return None
    words = sys.argv
    folder = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    canvas.savefig(path, dpi=160)
    print(f"drawn: {path}")
    return path
