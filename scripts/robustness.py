"""How accurate a model stays on test images that come as pictures of other kinds.

Each image becomes a picture file: enlarged, inverted, shifted, coloured, compressed, photographed.
The way of scripts/predict.py from a file to an MNIST image reads it back.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _options import (
    WARNING,
    SeededDataOptions,
    at_least,
    file_type,
    load,
    local_path,
    weights,
    wrong,
)
from _output import markdown, printable

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    import numpy as np


CREATOR = "jaxmnist scripts/robustness.py"  # a plot with this name in it may be made again


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Path = weights()
    images: int = cli.option(1000, "How many test images, chosen at random.", at_least(1))
    photos: Path | None = cli.option(
        None,
        "Directory of your own pictures with an index.csv (file,label,kind): measure these "
        "instead.",
        local_path,
    )
    plot: Path | None = cli.option(
        None,
        "With --photos, a file for what is misread: picture, ink and image.",
        file_type(".png", ".pdf", ".svg"),
    )
    data: SeededDataOptions = SeededDataOptions()

    def __post_init__(self) -> None:
        if self.plot and not self.photos:
            wrong("--plot needs --photos")


def main(options: Options) -> None:
    """Make the pictures, read them, predict, print a table."""
    import jax
    import numpy as np

    from jaxmnist.predict import load_model, predict

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(options.weights)
    if options.photos:
        measure_photos(options.photos, options.plot, model, params)
        return
    seed = options.data.seed
    data = load(options.data, seed)
    n = len(data.test.labels)
    if options.images > n:
        wrong(f"--images {options.images} is above the {n:,} test images")
    print(f"Data: {data.source}, {options.images:,} of {n:,} test images\n", flush=True)
    chosen = np.random.default_rng(seed).choice(n, options.images, replace=False)
    images, labels = (np.asarray(part)[chosen] for part in data.test)

    def count_right(images: np.ndarray) -> int:
        probabilities = np.asarray(predict(model.apply, params, images))
        right = (probabilities.argmax(axis=1) == labels) & images.any(axis=(1, 2))  # none is blank
        return int(right.sum())

    counts = {"none: the test images themselves": count_right(images)}
    seeds = [(seed, int(index)) for index in chosen]  # the same picture in any sample
    for name, read in read_kinds(images, seeds).items():
        counts[name] = count_right(read)
    print(table(counts, len(images)))
    if data.missing:
        print(f"\n{WARNING}", file=sys.stderr)


def measure_photos(directory: Path, plot: Path | None, model: Any, params: Any) -> None:
    """The accuracy on labelled pictures by kind, and a contact sheet of the failures."""
    import numpy as np
    import tqdm

    from jaxmnist.files import check_output
    from jaxmnist.photos import failure_figure, read_index, read_or_blank
    from jaxmnist.plots import save_figure
    from jaxmnist.predict import predict

    if plot:
        check_output("--plot", plot, CREATOR.encode())
    photos = read_index(directory)
    images = [read_or_blank(p.path) for p in tqdm.tqdm(photos, leave=False, disable=None)]
    digits = np.asarray(predict(model.apply, params, np.stack(images))).argmax(axis=1).tolist()
    said = [d if image.any() else None for d, image in zip(digits, images, strict=True)]
    right = [digit == photo.label for digit, photo in zip(said, photos, strict=True)]
    kinds = {"all": right}
    for photo, correct in zip(photos, right, strict=True):
        kinds[photo.kind] = [*kinds.get(photo.kind, ()), correct]
    rows = [["pictures", "n", "accuracy", "95 % interval"]]
    rows += [[k, f"{len(v)}", *accuracy(sum(v), len(v))] for k, v in kinds.items()]
    print(markdown(rows))
    failures = [
        x
        for x, correct in zip(zip(photos, images, said, strict=True), right, strict=True)
        if not correct
    ]
    if plot and failures:
        save_figure(failure_figure(failures), plot)
        print(f"\nWrote {printable(plot)}")


def accuracy(right: int, n: int) -> list[str]:
    """The accuracy and its interval, as a table shows them."""
    from scipy.stats import binomtest

    low, high = binomtest(right, n).proportion_ci(method="wilson")
    return [f"{right / n:.2%}", f"{low:.2%} to {high:.2%}"]


def read_kinds(images: np.ndarray, seeds: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """For each kind of picture, the images made into such files and read back."""
    import numpy as np
    import tqdm

    from jaxmnist.picture_kinds import KINDS, through_a_file

    result, context = {}, multiprocessing.get_context("spawn")
    with interrupts_wait():
        pool = ProcessPoolExecutor(mp_context=context)
    try:
        with tqdm.tqdm(total=len(KINDS) * len(images), leave=False, disable=None) as bar:
            for name in KINDS:
                with interrupts_wait():
                    pending = pool.map(through_a_file, repeat(name), images, seeds, chunksize=20)
                read = []
                for image in pending:
                    read.append(image)
                    bar.update()
                result[name] = np.stack(read)
    finally:
        with interrupts_wait():
            pool.shutdown(cancel_futures=True)  # or else all the pictures are still made
    return result


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C waits for what is done here; processes started here leave it to this one."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:  # processes inherit it; this one may get the signal in another thread
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def table(counts: dict[str, int], n: int) -> str:
    """The accuracy on each kind of picture, and its difference to the first."""
    rows = [["pictures", "accuracy", "95 % interval", "to plain, points"]]
    plain = next(iter(counts.values()))
    for name, count in counts.items():
        points = 100 * (count - plain) / n
        rows.append([name, *accuracy(count, n), f"{points:+.2f}"])
    return markdown(rows)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
