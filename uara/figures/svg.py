"""How a picture becomes part of a page: SVG text that names nothing outside itself."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["Figure", "svg_text"]  # pages name the type of a picture without its library


def svg_text(figure: Figure, name: str) -> str:
    """Render a figure as an SVG element that scales with the width it is given.

    The same figure gives the same text: neither date nor random identifiers are in it. Letters are
    drawn as outlines, so that the page needs no font.

    Args:
        figure: the picture.
        name: unique in the page; identifiers inside the SVG are derived from it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    element = buffer.getvalue()
    element = element[element.index("<svg") :]
    # Without width and height the view box alone decides, and the page sets the width.
    head, body = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    # Clip paths and markers of several figures share one name space in a page.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    return f"{head}>{body}"
