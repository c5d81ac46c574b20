"""Each script with the options of a short job, for the programs that try all scripts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.helpers import ROOT, finish

QUICK = "--dataset synthetic --epochs 1 --batch-size 6000 --hidden 8"


class Script(NamedTuple):
    """Options, in which {run}, {image} and {out} stand for paths; where the result is then."""

    options: str
    result: str = ""  # empty: on stdout


SCRIPTS = {
    "train": Script(f"{QUICK} --out {{out}}", "{out}/weights.safetensors"),
    "sweep": Script(f"{QUICK} --grid learning_rate=0.1 --out {{out}}.csv", "{out}.csv"),
    "evaluate": Script("{run} --dataset synthetic"),
    "predict": Script("{run} {image}"),
    "export": Script("{run} --formats safetensors page --out {out}", "{out}/sketchpad.html"),
    "report": Script("{run} --out {out}.html", "{out}.html"),
    "robustness": Script("{run} --dataset synthetic --images 2"),
    # These need the real MNIST, and say so in a line where there is none.
    "notebook": Script("--markdown"),
    "benchmark": Script("--only ours --peers none --runs 1 --out {out}.json", "{out}.json"),
    "pictures": Script("--out {out}", "{out}/digit.png"),
}


def prepare(place: Path) -> None:
    """Make in an empty directory a trained run, `run`, a picture, `image.png`, and `cache`."""
    path, options = str(ROOT / "scripts" / "train.py"), [*QUICK.split(), "--out", place / "run"]
    finish([sys.executable, path, *options], env=os.environ | environment(place))
    picture = Image.new("L", (56, 56), 255)
    picture.paste(0, (26, 10, 31, 46))
    picture.save(place / "image.png")


def environment(place: Path) -> dict[str, str]:
    """The cache that `prepare` has filled."""
    return {"JAXMNIST_CACHE_DIR": str(place / "cache")}


def arguments(name: str, place: Path) -> list[str]:
    """The options of a script, with paths in this directory."""
    return [part.format(**_paths(place)) for part in SCRIPTS[name].options.split()]


def result(name: str, place: Path) -> Path | None:
    """The file that a script leaves in this directory; None if it prints its result."""
    return Path(SCRIPTS[name].result.format(**_paths(place))) if SCRIPTS[name].result else None


def copy(prepared: Path, place: Path) -> None:
    """What `prepare` has made, but the cache, in a new directory."""
    place.mkdir(parents=True)
    shutil.copytree(prepared / "run", place / "run")
    shutil.copy(prepared / "image.png", place)


def _paths(place: Path) -> dict[str, Path]:
    return {"run": place / "run", "image": place / "image.png", "out": place / "out"}
