"""Report on runs of scripts/train.py --out: one HTML page with results, curves and pictures."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from _cli import run as run_script

if TYPE_CHECKING:
    from jaxmnist import Dataset
    from jaxmnist.runs.finished import Run


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Directories of finished runs."""
    out: Path = Path("report.html")
    """New file for the page."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if not self.runs:
            raise ValueError("name at least one run's directory")


def main(config: Config) -> None:
    """Read the runs, have their models look at their test images, write the page."""
    import matplotlib.figure  # noqa: F401  (to be missed before the work rather than after it)
    from _page import page

    from jaxmnist.errors import UsageError
    from jaxmnist.files import replacing
    from jaxmnist.runs.finished import look, read

    if config.out.exists():
        raise UsageError(f"--out {config.out}: is there already; name a new file")
    directory = config.out.absolute().parent
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise UsageError(f"--out {config.out}: {directory} is no directory that can be written to")
    named = names_of(config.runs)
    runs = {key: read(path) for key, path in named.items()}
    tests: dict[str, Dataset] = {}
    for run in runs.values():
        if run.test_set not in tests:
            tests[run.test_set] = load_test_set(run, config.data_dir)
    seen = {key: (run, look(run, tests[run.test_set])) for key, run in runs.items()}
    content = page(seen, {key: tests[run.test_set] for key, run in runs.items()}).encode()
    with replacing(config.out) as file:
        file.write(content)

    for key, (run, found) in seen.items():
        print(f"{key}: test accuracy {found.accuracy:.2%} on {run.test_set}")
    if any(run.drawn for run in runs.values()):
        print("WARNING: drawn digits are NOT MNIST")
    print(f"Wrote {config.out} ({len(content) / 1000:,.0f} kB)")


def names_of(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The runs by the names of their directories or, where two are alike, by their paths."""
    from jaxmnist.errors import UsageError

    places = [path.resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"{place}: named twice")
    names = [place.name for place in places]
    keys = [
        str(path) if names.count(place.name) > 1 else place.name
        for path, place in zip(paths, places, strict=True)
    ]
    named: dict[str, Path] = {}
    for key, path in zip(keys, paths, strict=True):
        key = "".join(x if x.isprintable() else "?" for x in key)  # nor is all of it Unicode
        while key in named:
            key += "'"
        named[key] = path
    return named


def load_test_set(run: Run, data_dir: Path | None) -> Dataset:
    """The images that the run was tested on."""
    from jaxmnist import load_mnist
    from jaxmnist.datasets.synthetic import load_synthetic

    return (load_synthetic(run.config["seed"]) if run.drawn else load_mnist(data_dir))[1]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
