"""How the scripts print tables, shares and names."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The rows as a Markdown table, the first as its header; columns from `left` on align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + (":" if k >= left else "-") for k, width in enumerate(widths)]
    cells = [
        [f"{cell:{'<' if k < left else '>'}{widths[k]}}" for k, cell in enumerate(row)]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def printable(text: object) -> str:
    """The text, with escapes for what could do something to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
