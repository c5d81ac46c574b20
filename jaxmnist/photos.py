"""A folder of labelled pictures of digits: its index, and a contact sheet of what is misread."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxmnist.errors import DataError
from jaxmnist.ink import ink_of
from jaxmnist.picture import read_picture
from jaxmnist.predict import SIDE, read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 100  # failures, at most, on a contact sheet


class Photo(NamedTuple):
    """A picture, what it shows, and a word for what kind of picture it is."""

    path: Path
    label: int
    kind: str


def read_index(directory: Path) -> list[Photo]:
    """The pictures that a directory's index.csv names: its columns are file, label and kind.

    Other columns are not read; without a kind all are of one. Raises a DataError that names the
    entry where a file or a digit is missing, and an OSError where there is no index.
    """
    path = directory / "index.csv"
    photos: list[Photo] = []
    with open(path, encoding="utf-8", newline="") as file:
        try:
            for row in csv.DictReader(file):
                photo = Photo(directory / row["file"], int(row["label"]), row.get("kind") or "any")
                if photo.label not in range(10) or not photo.path.is_file():
                    raise ValueError
                photos.append(photo)
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: entry {len(photos) + 1} names no file that is there, or no digit; the "
                "columns must be file,label,kind"
            ) from error
    if not photos:
        raise DataError(f"{path}: names no pictures")
    return photos


def read_or_blank(path: Path) -> UInt8[np.ndarray, "28 28"]:
    """`read_image`, and an empty image where nothing stands out in the picture."""
    try:
        return read_image(path)
    except DataError as error:
        if ": blank: " not in str(error):
            raise
        return np.zeros((SIDE, SIDE), np.uint8)


def failure_figure(
    failures: Sequence[tuple[Photo, UInt8[np.ndarray, "28 28"], int | None]],
) -> "Figure":
    """For each failure the picture, its ink, what the model is given, and what it said."""
    from matplotlib.figure import Figure

    failures = failures[:SHOWN]
    columns = min(4, len(failures))
    rows = -(-len(failures) // columns)
    figure = Figure(figsize=(4.5 * columns, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, 3 * columns, squeeze=False).reshape(-1, 3)
    for axes in grid.ravel():
        axes.set_axis_off()
    for triple, (photo, image, said) in zip(grid, failures, strict=False):
        picture = read_picture(photo.path)
        for axes, shown in zip(triple, (picture, ink_of(picture), image), strict=True):
            axes.imshow(shown, cmap="gray")
        triple[0].set_title(photo.path.name[-24:], fontsize=7, parse_math=False)
        answer = "nothing" if said is None else said
        triple[2].set_title(f"{photo.label}, read as {answer}", fontsize=8)
    return figure
