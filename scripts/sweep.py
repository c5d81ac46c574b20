"""Train many models at once: any options of scripts/train.py, each setting with several seeds.

Examples:
  scripts/sweep.py --grid learning_rate=0.003,0.03 hidden="128,64;256" --seeds 8 --out grid.csv
  scripts/sweep.py --sample 200 learning_rate=log:1e-4:1 momentum=0:0.99 --validation 10000
  scripts/sweep.py --grid learning_rate=0.01,0.1 --seeds 64 --out all.csv --part 3/16
  scripts/sweep.py --merge all.part-*-of-16.csv --out all.csv
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import contextlib
import dataclasses
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _options as o
from _output import markdown, printable

if TYPE_CHECKING:
    from jaxmnist.runs.sweep_file import Models
    from jaxmnist.runs.sweep_plan import Plan

CREATOR = "jaxmnist scripts/sweep.py"  # a plot with this name in it may be made again


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Search."""

    grid: tuple[str, ...] = cli.option(
        (),
        'All combinations of OPTION=VALUE,VALUE; the values of hidden are separated by ";".',
        metavar="OPTION=...",
    )
    sample: tuple[str, ...] = cli.option(
        (),
        "N, then OPTION=LOW:HIGH, OPTION=log:LOW:HIGH or OPTION=VALUE,VALUE: N random settings.",
        metavar="N OPTION=...",
    )
    sample_seed: int = cli.option(0, "Seed of the random settings.", o.at_least(0, 2**32))
    seeds: int = cli.option(1, "How many seeds each setting has: 0, 1, 2, ...", o.at_least(1))
    halving: int | None = cli.option(
        None, "Train all settings for few epochs, and only the best of every N for N times as many."
    )


@dataclasses.dataclass(frozen=True)
class ResultOptions:
    """Results."""

    out: Path | None = cli.option(
        None,
        "New .csv file for losses and accuracies, a row for each model and epoch.",
        o.file_type(".csv"),
    )
    resume: bool = cli.option(False, "Continue the sweep in --out, if there is one.")
    part: str = cli.option(
        "1/1", "Train only part I of N, into its own file next to --out.", metavar="I/N"
    )
    merge: tuple[Path, ...] = cli.option(
        (), "Join these files of parts into --out; nothing is trained."
    )
    top: int = cli.option(10, "How many settings the table shows, the best.", o.at_least(1))
    plot: Path | None = cli.option(
        None,
        "New .png, .svg or .pdf file for a plot of the results.",
        o.file_type(".png", ".svg", ".pdf"),
    )

    def __post_init__(self) -> None:
        if not self.out and (self.resume or self.part != "1/1" or self.merge):
            o.wrong("--resume, --part and --merge need an --out")
        part, parts = self.number
        if not 1 <= part <= parts:
            o.wrong(f"--part {self.part}: must be I/N with I from 1 to N, for instance 3/16")

    @property
    def number(self) -> tuple[int, int]:
        """Which part, from 1, of how many."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. Each model is what scripts/train.py trains with the same options and --seed;
    drawn digits are always those of seed 0."""

    search: SearchOptions
    recipe: o.RecipeOptions
    results: ResultOptions
    training: o.TrainingOptions
    model: o.ModelOptions
    optimizer: o.OptimizerOptions
    data: o.TrainingDataOptions
    where: o.DeviceOptions
    processes: o.ProcessOptions

    @property
    def swept(self) -> list[Any]:
        """The groups with the options that can be swept."""
        return [self.training, self.model, self.optimizer]


def check(options: Options) -> None:
    """Refuse options that exclude each other."""
    if bool(options.results.merge) == bool(options.search.grid or options.search.sample):
        o.wrong("name the settings by --grid or --sample, or the files by --merge")
    parts, distributed = options.results.part != "1/1", options.processes.distributed
    if parts and distributed:
        o.wrong("--distributed makes the parts by itself, so it takes no --part")
    if options.search.halving is not None and (parts or distributed):
        o.wrong("--halving compares all models, so it takes no --part and no --distributed")
    if distributed and not options.results.out:
        o.wrong("--distributed needs an --out that all processes can write to")


def usual_options(options: Options) -> list[Any]:
    """The groups that can be swept, as the recipe has them."""
    recipe = o.RECIPES[options.recipe.recipe]
    return [cli.build(type(group), recipe) for group in options.swept]


def main(options: Options) -> None:
    """Train, or join parts; then show which settings are best."""
    from jaxmnist.files import check_output
    from jaxmnist.runs.sweep_plan import make_plan, plan_of
    from jaxmnist.runs.sweep_run import merge
    from jaxmnist.search import make_settings

    check(options)
    out, plot, search = options.results.out, options.results.plot, options.search
    if plot:
        import matplotlib.figure  # noqa: F401  (a missing one shows before the training)

        check_output("--plot", plot, CREATOR.encode())
    if out and not out.absolute().parent.is_dir():
        o.wrong(f"--out {out}: there is no directory {out.absolute().parent}")
    models: Models | None
    if out and options.results.merge:
        merged = merge(options.results.merge, out)
        plan, models = plan_of(merged, options.swept), merged.models
    else:
        specs, usual = (search.grid, search.sample, search.sample_seed), usual_options(options)
        settings, left_out = make_settings(options.swept, *specs, usual=usual)
        for reason in left_out:
            print(f"Left out: {reason}")
        groups = [*options.swept, options.data]
        fixed = {name: value for group in groups for name, value in vars(group).items()}
        plan = make_plan(fixed, settings, search.seeds, search.halving)
        models = train(options, plan)
    if models is None:
        print(f"Other parts are not finished; the one that ends last joins them into {out}")
    else:
        show(options, plan, models)


def train(options: Options, plan: Plan) -> Models | None:
    """Train what is missing; all results, or None while other parts are not finished."""
    import jax
    import tqdm

    from jaxmnist.datasets import cache
    from jaxmnist.machine import use_cpu_cores
    from jaxmnist.runs import identity, programs, sweep_plan, sweep_run
    from jaxmnist.runs.compile_cache import compile_cache

    jax.config.update("jax_default_matmul_precision", "highest")  # as in scripts/train.py
    use_cpu_cores()
    job, out, identity_of = options.processes, options.results.out, identity.environment()
    address = (job.coordinator, job.processes, job.process_id, job.timeout)
    alone = contextlib.nullcontext(lambda header: options.results.number)
    with sweep_run.deal(*address) if job.distributed else alone as part_of:
        devices = jax.local_devices(backend=programs.find_device(options.where.device).platform)
        data = o.load(options.data, 0)
        added = options.data.synthetic_digits
        train_set, tests = programs.split(data, options.data.validation, added)
        sweep_run.check_steps(plan, len(train_set.labels))
        head = sweep_plan.header(plan, "drawn digits" if data.synthetic else "MNIST", identity_of)
        part = part_of(head)
    results = sweep_run.open_results(plan, head, out, part, resume=options.results.resume)
    if results.note:
        print(f"Warning: {results.note}", file=sys.stderr)
    mine, sets = sweep_run.models_of(plan, part), {"train": train_set, **tests}
    left = sweep_run.count_left(plan, results.models, mine)
    quiet = job.distributed and part[0] > 1
    if not quiet:
        print(f"Data: {data.source}\n{sweep_run.describe(plan, part, left)}", flush=True)
    began, use_cache = time.perf_counter(), options.where.compile_cache
    cached: Any = compile_cache(cache.cache_dir()) if use_cache else contextlib.nullcontext()
    with cached, tqdm.tqdm(total=left, unit="model", leave=False, disable=None) as bar:
        for population, count in sweep_run.train_missing(plan, results, mine, sets, devices):
            bar.update(count)
            at_once = f"{population.chunk} at once, {population.memory / 1e9:.2f} GB on each of"
    if left and not quiet:
        seconds = time.perf_counter() - began
        where = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
        print(f"  {at_once} {where}; {seconds:.2f} s, {seconds / left:.2f} s a model")
    return sweep_run.merge_parts(out, part) if out and part != (1, 1) else results.models


def show(options: Options, plan: Plan, models: Models) -> None:
    """The best settings, how to train the best one by itself, and the plot."""
    from jaxmnist.plots import save_figure
    from jaxmnist.runs import sweep_report
    from jaxmnist.runs.sweep_plan import standings

    places, top, plot = standings(plan, models), options.results.top, options.results.plot
    print("\n" + markdown(sweep_report.table(plan, models, places[:top]), 1))
    if len(places) > top:
        print(f"and {len(places) - top} more settings (--top)")
    print(sweep_report.explain(plan))
    groups = [*options.swept, options.data, options.where]
    words = sweep_report.arguments(plan, places[0][1].setting, groups)
    print(f"The best: {shlex.join(['scripts/train.py', *words])}")
    if plot:
        save_figure(sweep_report.figure(plan, models), plot)
    for path in filter(None, (options.results.out, plot)):
        print(f"Wrote {printable(path)}")


if __name__ == "__main__":
    cli.run(main, Options, __doc__, recipes=o.RECIPES)
