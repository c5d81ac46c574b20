"""Read labelled pictures without each part of the reading, and print what it is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tqdm

from jaxmnist import ink
from jaxmnist.photos import read_index, read_or_blank
from jaxmnist.predict import load_model, predict
from tests import command_line

LEAST = 10  # pictures of a kind; smaller kinds are counted in "all" only


def same(array: np.ndarray) -> np.ndarray:
    """In place of what takes something out of a picture or a mask."""
    return array


def grey_axis(picture: np.ndarray, small: bool) -> np.ndarray:
    """In place of the colours' own axis: dark is ink, or light where more than half is dark."""
    grey = picture.mean(axis=2)
    dark = (grey < (grey.min() + grey.max()) / 2).mean() < 0.5
    return np.full(3, -(3**-0.5) if dark else 3**-0.5)


# What is put in place of each part.
PARTS: dict[str, Mapping[str, Any]] = {
    "frames, sheets and plots": {"panel": same},
    "ruled lines": {"without_lines": same},
    "underlines": {"without_underline": same, "_underlines": lambda *_: []},
    "weak ink beside strong ink": {"WEAK": ink.STRONG},
    "colours and polarity": {"_ink_colour": grey_axis},
    "uneven light": {"slope": np.zeros_like},
    "small pictures apart": {"SMALL": 0},
    "thin strokes thickened": {"_thicken": same},
}


@contextlib.contextmanager
def without(*parts: str) -> Iterator[None]:
    """The reading of pictures without these parts."""
    changes = {name: value for part in parts for name, value in PARTS[part].items()}
    with mock.patch.multiple(ink, **changes) if changes else contextlib.nullcontext():
        yield


def main(run: Path, photos: Path) -> None:
    """Print the accuracy by kind, with all parts and without each, in Markdown.

    Args:
        run: the directory of a training, or a weights file.
        photos: a directory with an index.csv, as for scripts/robustness.py.
    """
    model, params = load_model(run)
    index = read_index(photos)
    labels, kinds = np.array([p.label for p in index]), np.array([p.kind for p in index])
    groups = {"all": np.full(len(index), True)} | {
        kind: kinds == kind for kind in sorted(set(kinds)) if (kinds == kind).sum() >= LEAST
    }
    variants = {"as it is": ()} | {part: (part,) for part in PARTS} | {"none of them": (*PARTS,)}
    print("| without |", " | ".join(f"{k} ({v.sum()})" for k, v in groups.items()), "|")
    print("| --- |", " | ".join("---:" for _ in groups), "|")
    for name, parts in tqdm.tqdm(variants.items(), leave=False, disable=None):
        with without(*parts):
            images = np.stack([read_or_blank(photo.path) for photo in index])
        digits = np.asarray(predict(model.apply, params, images)).argmax(axis=1)
        right = (digits == labels) & images.any(axis=(1, 2))
        cells = [f"{right[chosen].mean():.1%}" for chosen in groups.values()]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    command_line.run(main)
