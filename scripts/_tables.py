"""What the scripts print: one kind of table, Markdown, that can be pasted as it is."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The rows as a Markdown table, the first as its header; columns from `left` on align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a cell; an empty one where it is not known."""
    return "" if share is None else f"{share:.{digits}%}"


def printable(name: object) -> str:
    """A file's name, with escapes for what could do something to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
