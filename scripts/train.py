"""Train the notebook's MLP: 784-128-64-10 on MNIST, SGD, five epochs in batches of 64.

With the defaults it ends at a training loss of 0.38 and a test accuracy of 90 %, after a second or
two on two CPU cores.

Examples:
  scripts/train.py --out runs/first
  scripts/train.py --optimizer adam --learning-rate 0.001 --hidden 512 256
  scripts/train.py --recipe accurate --out runs/accurate
"""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])
import _cli as cli

# isort: split
import contextlib
import time
from functools import partial
from typing import Any

import _options as o


class Options(cli.Options):
    """The defaults are the notebook's run."""

    recipe: o.RecipeOptions
    training: o.TrainingOptions
    start: o.StartOptions
    model: o.ModelOptions
    optimizer: o.OptimizerOptions
    data: o.DataOptions
    split: o.SplitOptions
    where: o.DeviceOptions
    parallel: o.ParallelOptions
    output: o.OutputOptions


def main(options: Options) -> None:
    """Train one model: devices, data, model, start, programs, loop."""
    import jax

    from jaxmnist.optimizers import make_optimizer
    from jaxmnist.runs import programs, setup
    from jaxmnist.runs.directory import open_run

    clock, training, output, job = Clock(), options.training, options.output, options.parallel

    # devices: one, or several that share each batch, those of other processes included
    # float32 everywhere: by default NVIDIA GPUs multiply in TF32 and TPUs in bfloat16
    jax.config.update("jax_default_matmul_precision", "highest")
    if job.distributed:
        programs.join_processes(job.coordinator, job.processes, job.process_id, job.timeout)
    device = programs.find_device(options.where.device)
    mesh = programs.find_mesh(device, "all" if job.distributed else job.devices)

    # data
    data = o.load(options.data, options.start.seed)
    train_set, test_sets = setup.split(data, **vars(options.split))
    steps = setup.count_steps(len(train_set.labels), training.batch_size, training.epochs)

    # model, optimizer, step
    tx = make_optimizer(**vars(options.optimizer), steps=steps * training.epochs)
    model, train_step, metrics_fn = setup.make_training(
        options.model.hidden, options.model.loss, training.augment or None, tx
    )

    # start: parameters and orders from the seed's key, or as PyTorch makes them
    start = setup.make_start(model, tx, len(train_set.labels), options.start)
    print(f"Data: {data.source}\nModel: {setup.describe(model, start.shapes, device)}")

    # directory: of the process that writes
    if output.plots:
        import matplotlib.figure  # noqa: F401  (missed now, and not when all is trained)
    run: Any = contextlib.nullcontext()
    if output.out and not jax.process_index():
        warn = partial(print, "Warning:", file=sys.stderr)
        run = open_run(output.out, warn=warn, tensorboard=output.tensorboard)
    with programs.compile_cache(), run as directory:
        state = find_state(options, data, start, directory)
        epochs = range(int(state.step) // steps if state else 0, training.epochs)
        clock.lap("load")

        # programs: an epoch and the tests, compiled
        if epochs:
            place, train_epoch, test = programs.compile_programs(
                *(train_step, metrics_fn, start.shapes, train_set, test_sets),
                batch_size=training.batch_size,
                where=mesh or device,
            )
            state, order = place(state or start.make_state()), start.make_order()
            clock.lap("compile")
            run_epochs(train_epoch, test, state, order, epochs, directory, clock)
        if directory and output.plots:
            draw(directory, data)
    work = f"{training.epochs} x {steps} steps on {mesh.size if mesh else 1} x {device.platform}"
    print(f"\nTrained for {work}")
    report(options, data, len(epochs) * len(train_set.labels), clock)


def find_state(options: Options, data: Any, start: Any, directory: Any) -> Any:
    """The state of the newest checkpoint, if this run has one."""
    from jaxmnist.errors import UsageError
    from jaxmnist.runs import programs
    from jaxmnist.runs.directory import describe_epoch, make_config

    epochs, output, optimizer = options.training.epochs, options.output, options.optimizer
    more: dict[str, Any] = {"data": "synthetic digits" if data.synthetic else "MNIST"}
    if optimizer.schedule != "constant" or optimizer.warmup:  # by the share of all epochs
        more["scheduled_epochs"] = epochs
    if start.init:  # else any: they are in the checkpoint
        more["init"] = start.init
    config, distributed = make_config(vars(options).values(), **more), options.parallel.distributed
    if distributed:
        programs.agree(config["identity"] | {"epochs": epochs, "resume": output.resume})
    state = directory.begin(config, start.shapes, resume=output.resume) if directory else None
    if distributed and output.resume:
        state = programs.broadcast(state or start.make_state())
    if directory and directory.records:
        done = directory.records[-1]["epoch"]
        if done > epochs:
            text = f"trained for {done} epochs, more than --epochs {epochs}"
            raise UsageError(f"{output.out}: {text}")
        print(f"Resumed from {output.out} after epoch {done}:")
        print(*(describe_epoch(record, epochs) for record in directory.records), sep="\n")
    return state


def run_epochs(
    train_epoch: Any, test: Any, state: Any, order: Any, epochs: range, directory: Any, clock: Any
) -> None:
    """Train and test, epoch after epoch."""
    import numpy as np
    import tqdm

    from jaxmnist import check_finite
    from jaxmnist.runs.directory import describe_epoch, epoch_record

    following = order(epochs.start)
    for epoch in tqdm.tqdm(epochs, unit="epoch", leave=False, disable=None):
        # train: one compiled scan over the shuffled batches
        state, losses = train_epoch(state, following)
        following = order(epoch + 1)  # made while the device trains
        losses = np.asarray(losses)
        clock.lap("train")
        check_finite(losses, first_step=epoch * len(losses))
        # test
        record = epoch_record(epoch + 1, losses, test(state.params))
        clock.lap("evaluate")
        tqdm.tqdm.write(describe_epoch(record, epochs.stop))
        # keep
        if directory:
            directory.save(state, record, losses)
            clock.lap("save")


def draw(directory: Any, data: Any) -> None:
    """Draw the figures of the finished run."""
    import numpy as np

    from jaxmnist.pictures.predict import log_probabilities
    from jaxmnist.plots import run_figures, save_figure
    from jaxmnist.runs.directory import read_run

    run, (images, labels) = read_run(directory.path), map(np.asarray, data.test)
    probabilities = np.exp(log_probabilities(run.params, images))
    figures = run_figures(run, images, labels, probabilities)
    for name, figure in figures.items():
        save_figure(figure, directory.path / name)


def report(options: Options, data: Any, images: int, clock: "Clock") -> None:
    """The closing summary."""
    print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items()))
    if images:
        print(f"  {images / clock.seconds['train']:,.0f} images per second in training")
    else:
        print("  nothing left to train; a larger --epochs trains further")
    if not options.output.out:
        print("  the model is not kept; --out DIRECTORY keeps it")
    if data.synthetic and options.data.dataset == "auto":
        print(o.WARNING)


class Clock:
    """Seconds spent, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


if __name__ == "__main__":
    cli.run(main, Options, __doc__, **o.RECIPES)
