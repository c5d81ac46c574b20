"""Train many models at once, each setting with several seeds, and find the best setting.

A search is a study of Optuna's. The same command again, here or on other machines that reach the
study, continues it.

Examples:
  scripts/sweep.py --grid learning_rate=0.01,0.1 hidden="128,64;256" --seeds 8
  scripts/sweep.py --sample 60 learning_rate=log:1e-4:1 --study search.log
"""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import dataclasses
import itertools
import math
import shlex
import time
from pathlib import Path
from typing import Any, Literal

import _options as o


class SearchOptions(cli.Options):
    """Search."""

    grid: tuple[str, ...] = cli.option((), metavar="OPTION=V,V")
    """All combinations of values."""
    sample: tuple[str, ...] = cli.option((), metavar="N OPTION=LOW:HIGH")
    """N settings of ranges."""
    sampler: Literal["random", "tpe"] = "random"
    """At random, or by Optuna's TPE."""
    sample_seed: int = cli.option(0, o.at_least(0, 2**32))
    """Seed of the sampler."""
    seeds: int = cli.option(1, o.at_least(1))
    """Train each setting with the seeds 0 to N - 1."""
    study: str | None = cli.option(None, metavar="FILE|URL")
    """A file or database to keep it in."""
    out: Path | None = cli.option(None, o.file_type(".csv"))
    """For all losses and accuracies."""
    top: int = cli.option(10, o.at_least(1))
    """How many settings the table shows."""
    plot: Path | None = cli.option(None, metavar="DIR")
    """A directory for plots."""


class Options(cli.Options):
    """The options. Each model is what scripts/train.py trains with the same options and --seed."""

    search: SearchOptions
    recipe: o.RecipeOptions
    training: o.TrainingOptions
    model: o.ModelOptions
    optimizer: o.OptimizerOptions
    data: o.DataOptions
    split: o.SplitOptions
    where: o.DeviceOptions


def main(options: Options) -> None:
    """Train what is missing; then show which settings are best."""
    import jax
    import tqdm

    from jaxmnist.runs import programs, setup
    from jaxmnist.runs.directory import environment
    from jaxmnist.runs.machine import use_cpu_cores
    from jaxmnist.runs.search import Search, plot, write_csv
    from jaxmnist.runs.study import Worker, open_study

    # search
    asked = options.search
    search = Search(asked, [options.training, options.model, options.optimizer], cli.convert)
    for reason, count in search.left_out.items():
        print(f"Left out, {count} settings: {reason}")

    # data
    jax.config.update("jax_default_matmul_precision", "highest")  # as in scripts/train.py
    use_cpu_cores()
    devices = jax.local_devices(backend=programs.find_device(options.where.device).platform)
    data = o.load(options.data, 0)
    train_set, tests = setup.split(data, **vars(options.split))
    for given in map(search.options, search.settings or [{}]):
        setup.count_steps(len(train_set.labels), given["batch_size"], given["epochs"])

    # study
    about = {**vars(options.split), **environment()["flags"], **environment()["versions"]}
    about["synthetic"] = data.synthetic
    if asked.plot:
        asked.plot.mkdir(parents=True, exist_ok=True)
    study = open_study(asked.study)
    worker = Worker(study, search, {"train": train_set, **tests}, about, devices)
    total, done, written = search.count * search.seeds, worker.done(), -math.inf
    models = f"{search.count:,} settings x {search.seeds} seeds, {done:,} are trained"
    print(f"Data: {data.source}\nModels: {models}")

    # train
    bar = tqdm.tqdm(total=total, initial=done, unit="model", leave=False, disable=None)
    with programs.compile_cache(), bar:
        for now in itertools.chain([done], worker.work(), [total]):
            bar.update(now - bar.n)
            if asked.out and (now == total or time.monotonic() - written > 10):
                write_csv(asked.out, worker.results())
                written = time.monotonic()

    # results
    show(options, worker)
    if asked.plot:
        plot(asked.plot, worker.results(), search.space, worker.ranked_by)


def show(options: Options, worker: Any) -> None:
    """Print the best settings, and how to train the best one by itself."""
    scores = list(dict.fromkeys((worker.ranked_by, "test_accuracy", "test_loss")))
    results = sorted(worker.results(), key=lambda r: (r.diverged, -r.score(worker.ranked_by)[0]))
    rows = [["", *(n.replace("_", " ") for n in [*worker.search.space, *scores]), "diverged"]]
    for number, result in enumerate(results[: options.search.top], 1):
        values = [result.setting[name] for name in worker.search.space]
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        for name in scores:
            form = ".2%" if name.endswith("accuracy") else ".4f"
            parts = [f"{x:{form}}" for x in result.score(name) if not math.isnan(x)]
            cells.append(" ± ".join(parts))
        rows.append([str(number), *cells, f"{result.diverged} of {len(result.members)}"])
    print(cli.markdown(rows))
    if len(results) > options.search.top:
        print(f"and {len(results) - options.search.top} more (--top)")
    print(f"The best: {command(options, results[0].setting)}")


def command(options: Options, setting: dict[str, Any]) -> str:
    """The command line that trains a setting by itself."""
    words, recipe = ["scripts/train.py"], o.RECIPES[options.recipe.recipe]
    for group in list(vars(options).values())[1:-1]:  # but the search and the device
        for field in dataclasses.fields(group):
            value = setting.get(field.name, getattr(group, field.name))
            if value != recipe.get(field.name, field.default):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [cli.flag(field.name), text]
    return shlex.join(words)


if __name__ == "__main__":
    cli.run(main, Options, __doc__, **o.RECIPES)
