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
from typing import TYPE_CHECKING

from _options import WARNING, SeededDataOptions, Weights, at_least, load, wrong
from _output import markdown

if TYPE_CHECKING:  # the functions import what they use, so that --help does not wait for JAX
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
    """The options."""

    weights: Weights
    """A weights file, or the directory that scripts/train.py --out wrote."""
    images: int = 1000
    """How many test images, chosen at random."""
    data: SeededDataOptions = SeededDataOptions()

    def __post_init__(self) -> None:
        at_least(1, images=self.images)


def main(options: Options) -> None:
    """Make the pictures, read them, predict, print a table."""
    import jax
    import numpy as np

    from jaxmnist.predict import load_model, predict

    jax.config.update("jax_platforms", "cpu")  # less work than waking an accelerator
    model, params = load_model(options.weights)
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
        return int((probabilities.argmax(axis=1) == labels).sum())

    counts = {"none: the test images themselves": count_right(images)}
    seeds = [(seed, int(index)) for index in chosen]  # the same picture in any sample
    for name, read in read_kinds(images, seeds).items():
        counts[name] = count_right(read)
    print(table(counts, len(images)))
    if data.missing:
        print(f"\n{WARNING}", file=sys.stderr)


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
    from scipy.stats import binomtest

    rows = [["pictures", "accuracy", "95 % interval", "to plain, points"]]
    plain = next(iter(counts.values()))
    for name, count in counts.items():
        low, high = binomtest(count, n).proportion_ci(method="wilson")
        points = 100 * (count - plain) / n
        rows.append([name, f"{count / n:.2%}", f"{low:.2%} to {high:.2%}", f"{points:+.2f}"])
    return markdown(rows)


if __name__ == "__main__":
    cli.run(main, Options, __doc__, result_on_stdout=True)
