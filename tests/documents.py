"""What the READMEs hold: blocks of commands and examples, which tests run as they stand.

A comment in the line before a block changes that: `<!-- not run: why -->` leaves it out, and
`<!-- tested with: OPTIONS -->` adds these to its last command, where it takes long without.
"""

import re
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT

DOCUMENTS = ("README.md", "jaxmnist/README.md", "scripts/README.md", "tests/README.md")
COOKBOOK = "jaxmnist/README.md"  # each chapter is a program of its own
_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n+)?)^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!-- (not run|tested with): (.+) -->")


class Block(NamedTuple):
    """A fenced block."""

    place: str  # the document and the line, for messages
    language: str  # sh: commands; python: an example; text: what a program printed
    text: str
    kind: str = ""  # not run, tested with
    words: str = ""  # why, or the options


def read_blocks(document: str) -> list[Block]:
    """The blocks of a document, in order."""
    text = (ROOT / document).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        comment, language, body = match.groups()
        place = f"{document}:{text.count(chr(10), 0, match.start(2)) + 1}"
        told = _COMMENT.search(comment)
        found.append(Block(place, language, body, *(told.groups() if told else ())))
    return found


def read_chapters() -> tuple[str, dict[str, list[str]]]:
    """The cookbook's first block, and each chapter's blocks of code by its title."""
    start, *chapters = re.split(r"^## ", (ROOT / COOKBOOK).read_text(), flags=re.MULTILINE)

    def code(text: str) -> list[str]:
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    return code(start)[0], {text.split("\n")[0]: code(text) for text in chapters}


def write_example(document: str, path: Path) -> bool:
    """Write the document's examples into one program, with its line numbers; are there any?"""
    lines: list[str] = []
    for block in read_blocks(document):
        if block.language == "python" and block.kind != "not run":
            first = int(block.place.rpartition(":")[2])
            lines += [""] * (first - len(lines)) + block.text.splitlines()
    path.write_text("\n".join(lines) + "\n")
    return bool(lines)
