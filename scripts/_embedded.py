"""Pictures as parts of an HTML page, so that it needs no file beside it."""

from __future__ import annotations

import base64
import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def png_url(image: np.ndarray) -> str:
    """A digit, dark on light, as a data URL."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` for an HTML page, on light or dark.

    What is black in it takes the colour of the text around it, its background is the page's, its
    text is text, and it is as wide as its container. Screen readers get the label, which no other
    figure of the page may have.
    """
    import matplotlib

    content = io.StringIO()
    # The salt makes ids that no other figure of the page has, and the same ones every time.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": label}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has others
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    svg = content.getvalue()
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    head = f'<svg {view[0]} role="img" aria-label="{escape(label)}" fill="currentColor"'
    svg = re.sub("^.*?<svg[^>]*", head, svg, count=1, flags=re.DOTALL)
    return svg.replace("#000000", "currentColor")
