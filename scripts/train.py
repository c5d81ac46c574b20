"""Train the notebook's MLP: 784-128-64-10 on MNIST, SGD, five epochs in batches of 64.

With the defaults it ends at a training loss of 0.38 and a test accuracy of 90 %, after a second or
two on two CPU cores.

Examples:
  scripts/train.py --out runs/first
  scripts/train.py --optimizer adam --learning-rate 0.001 --hidden 512 256 --epochs 20
  scripts/train.py --recipe accurate --out runs/accurate
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _cli as cli

# isort: split
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal

import _options as o
from _options import RECIPES, WARNING, OutputOptions, load

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist.datasets import Data
    from jaxmnist.runs.directory import NoDirectory, RunDirectory
    from jaxmnist.runs.processes import OneProcess
    from jaxmnist.runs.programs import Programs
    from jaxmnist.runs.randomness import Orders


@dataclasses.dataclass(frozen=True)
class Options:
    """The options. The defaults are the notebook's run."""

    recipe: o.RecipeOptions
    training: o.TrainingOptions
    model: o.ModelOptions
    optimizer: o.OptimizerOptions
    start: o.StartOptions
    data: o.TrainingDataOptions
    where: o.DevicesOptions
    processes: o.ProcessOptions
    output: OutputOptions

    @property
    def devices(self) -> int | Literal["all"]:
        """How many devices share each batch: with other processes, all."""
        return "all" if self.processes.distributed else self.where.devices


def main(options: Options) -> None:
    """Train, alone or with other processes, of which the first writes."""
    import jax

    from jaxmnist.runs.processes import OneProcess, join

    # float32 everywhere: by default NVIDIA GPUs multiply in TF32 and TPUs in bfloat16, and the same
    # seed would train differently there.
    jax.config.update("jax_default_matmul_precision", "highest")
    job, alone = options.processes, contextlib.nullcontext(OneProcess())
    address = (job.coordinator, job.processes, job.process_id, job.timeout)
    with join(*address) if job.distributed else alone as group:
        output = options.output if group.first else OutputOptions()
        with open_directory(output) as directory:
            train(options, group, directory)


def open_directory(output: OutputOptions) -> RunDirectory | NoDirectory:
    """The directory of the run, if there is to be one."""
    import tqdm

    from jaxmnist.runs.directory import NoDirectory, RunDirectory
    from jaxmnist.runs.logs import EventLog

    if output.out is None:
        return NoDirectory()
    if output.plots:
        import matplotlib.figure  # noqa: F401  (missed now, and not when all is trained)

    def warn(line: str) -> None:
        tqdm.tqdm.write(f"Warning: {line}", file=sys.stderr)  # above the bar

    events = EventLog(output.out / "tensorboard") if output.tensorboard else None
    return RunDirectory(output.out, warn=warn, keep=output.keep, events=events)


def train(options: Options, group: OneProcess, directory: RunDirectory | NoDirectory) -> None:
    """Load, compile, train and evaluate, report."""
    import jax.numpy as jnp

    from jaxmnist import TrainState
    from jaxmnist.datasets import cache
    from jaxmnist.runs import identity, programs, randomness
    from jaxmnist.runs.compile_cache import compile_cache
    from jaxmnist.runs.directory import find_state
    from jaxmnist.runs.finished import draw_run
    from jaxmnist.runs.run_logs import describe_epoch

    clock, training, where, output = Clock(), options.training, options.where, options.output
    device = programs.find_device(where.device)
    mesh = programs.find_mesh(device, options.devices, training.batch_size)
    start = options.start
    data = load(options.data, start.seed)
    train_set, test_sets = programs.split(
        data, options.data.validation, options.data.synthetic_digits
    )
    n = len(train_set.labels)
    steps = programs.count_steps(n, training.batch_size, training.epochs)
    model, tx, train_step, evaluation, key = make_model(options, steps * training.epochs)
    shapes = programs.state_shapes(model, tx, device, key)
    print(f"Data: {data.source}\nModel: {programs.describe_model(shapes.params)}", flush=True)
    config = identity.record(dataclasses.asdict(options), data.source, bool(data.missing))
    group.agree(identity.agreed(config))
    state, step_losses = find_state(directory, config, shapes, steps, output.resume, group)
    if state:
        past = [describe_epoch(record, training.epochs) for record in directory.logs.records]
        print(*past, f"Resumed from {output.out} after step {state.step:,}", sep="\n", flush=True)
    done, chunk = int(state.step) if state else 0, output.chunk(steps)
    epochs = range(done // steps, training.epochs)
    clock.lap("load")

    with compile_cache(cache.cache_dir()) if where.compile_cache else contextlib.nullcontext():
        compiled = programs.Programs(
            train_step,
            evaluation,
            shapes,
            train_set,
            test_sets,
            batch_size=training.batch_size,
            sizes=programs.chunk_sizes(n, training.batch_size, chunk, done, epochs),
            device=device,
            mesh=mesh,
        )
        torch = start.torch_seed, start.torch_order, start.torch_test_loader
        params, orders = randomness.first_params_and_orders(model, n, epochs, start.seed, *torch)
        if start.init and state is None:
            params = randomness.load_params(start.init, params)
        state = state or TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key=key)
        state = compiled.place(state)
        compiled.wait()
    clock.lap("compile")

    state = run_epochs(state, compiled, orders, step_losses, options, group, directory, clock)
    directory.finish(state.params)
    if output.plots and output.out and group.first:
        draw_run(output.out, data.test)
        clock.lap("draw")
    report(options, data, programs.describe_devices(device, mesh), steps, n * len(epochs), clock)


def make_model(options: Options, steps: int) -> tuple[Any, Any, Any, Any, Any]:
    """The model, its optimizer for so many steps, a step, what is evaluated, the steps' key."""
    import jax

    from jaxmnist.optimizers import make_optimizer
    from jaxmnist.runs.setup import make_training

    model, augment = options.model, options.training.augment or None
    tx = make_optimizer(**dataclasses.asdict(options.optimizer), steps=steps)
    mlp, train_step, evaluation = make_training(model.hidden, model.loss, augment, tx)
    key = jax.random.key(options.start.seed) if augment else None  # else nothing asks for it
    return mlp, tx, train_step, evaluation, key


def run_epochs(
    state: Any,
    programs: Programs,
    orders: Orders,
    losses: np.ndarray,
    options: Options,
    group: OneProcess,
    directory: RunDirectory | NoDirectory,
    clock: Clock,
) -> Any:
    """Train on each chunk of each epoch, and test after each epoch; the last state."""
    import jax
    import tqdm

    from jaxmnist import check_finite
    from jaxmnist.errors import Stopped
    from jaxmnist.runs.programs import check_finite_params
    from jaxmnist.runs.randomness import prefetch
    from jaxmnist.runs.run_logs import describe_epoch, epoch_record
    from jaxmnist.runs.signals import Signals

    output, last, steps, done = options.output, options.training.epochs, len(losses), state.step
    every = output.checkpoint_every if output.checkpoint_unit == "epochs" else 1
    handled = output.out is not None or options.processes.distributed
    with (
        Signals() if handled else contextlib.nullcontext(Signals()) as signals,
        tqdm.tqdm(total=last - int(done) // steps, unit="epoch", leave=False, disable=None) as bar,
    ):
        for epoch, chunks in prefetch(programs.epochs(orders, output.chunk(steps), int(done))):
            for part, run in chunks:
                state, metrics = run(state)
                done = epoch * steps + part.stop
                losses[part.start : part.stop] = new = jax.device_get(metrics["loss"])
                clock.lap("train")
                check_finite(new, first_step=done - len(part))
                directory.logs.add_steps(done - len(part) + 1, new)
                if part.stop == steps:
                    record = epoch_record(epoch + 1, done, losses, programs.evaluate(state.params))
                    clock.lap("evaluate")
                    directory.logs.add_record(record)
                    bar.update()
                    bar.write(describe_epoch(record, last))
                    sys.stdout.flush()  # also where the output goes into a file
                signal = group.maximum(signals.number)
                final = done == last * steps
                if signal or final or part.stop < steps or (epoch + 1) % every == 0:
                    check_finite_params(state.params, done)
                    directory.save(state, {"losses": losses})
                if signal and not final:
                    directory.settle()
                    group.leave()
                    saved = "stopped and saved" if output.out else "stopped"
                    hint = "; --resume continues" if output.out else ""
                    raise Stopped(signal, f"{saved} after step {done:,}{hint}")
    return state


def report(
    options: Options, data: Data, devices: str, steps: int, images: int, clock: Clock
) -> None:
    """The closing summary."""
    epochs, out = options.training.epochs, options.output.out
    print(f"\nTrained on {data.source}")
    print(f"  {epochs} {'epoch' if epochs == 1 else 'epochs'} of {steps} steps on {devices}")
    print("  " + ", ".join(f"{name} {s:.2f} s" for name, s in clock.seconds.items()))
    if images:
        print(f"  {images / clock.seconds['train']:,.0f} images per second in training")
    else:
        print("  nothing left to train; a larger --epochs trains further")
    if out:
        print(f"  config, metrics, checkpoints and weights in {out}")
    else:
        print("  the model is not kept; --out DIRECTORY keeps it")
    if data.missing:
        print(WARNING)


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
    cli.run(main, Options, __doc__, recipes=RECIPES)
