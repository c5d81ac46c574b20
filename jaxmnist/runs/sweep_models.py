"""Training the models of a sweep: the programs, what each model is given, the rows it gives."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmnist.data import Dataset
from jaxmnist.evaluation import evaluate
from jaxmnist.machine import check_memory
from jaxmnist.model import MLP
from jaxmnist.optimizers import make_optimizer
from jaxmnist.population import Job, Population, Run, run_jobs
from jaxmnist.ranking import Rung
from jaxmnist.runs.setup import make_training
from jaxmnist.runs.sweep_file import Models, Row
from jaxmnist.runs.sweep_plan import Plan, as_text, is_argument, program_key, rank_settings
from jaxmnist.search import Setting
from jaxmnist.training import TrainState, train
from jaxmnist.types import Metrics


def train_models(
    plan: Plan,
    models: Models,
    numbers: Collection[int],
    data: Mapping[str, Dataset],
    devices: Sequence[jax.Device],
) -> Iterator[tuple[Population, list[Row]]]:
    """Train the models that are missing; the rows of each chunk of them as soon as it is trained.

    Args:
        plan: the sweep.
        models: the rows that there are. The new ones must be added to it before the next chunk is
            asked for: by them it is chosen which settings reach the next rung.
        numbers: the models that this process trains, out of all.
        data: "train", "test" and, with a validation split, "validation".
        devices: where to train.

    Raises:
        JaxmnistError: a model does not fit into the memory; where its weights alone do not, before
            any other is trained.
    """
    for hidden in {(plan.options | setting)["hidden"] for setting in plan.settings}:
        _check_memory(hidden, devices[0])
    settings = list(range(len(plan.settings)))
    for number, rung in enumerate(plan.rungs):
        if number:
            ranks = rank_settings(plan, models, settings, plan.rungs[number - 1])
            settings = sorted(r.setting for r in ranks[: rung.settings])
        jobs, groups = _jobs(plan, rung, settings, models, numbers)
        for job, population, (rows, results) in run_jobs(jobs, dict(data), devices=devices):
            new: list[Row] = []
            for i, model in enumerate(groups[job][row] for row in rows):
                new += _rows(plan, model, results, i)[len(models.get(model, ())) :]
            yield population, new


def _check_memory(hidden: Sequence[int], device: jax.Device) -> None:
    example = np.zeros((1, 784), np.float32)
    params = jax.eval_shape(lambda: MLP(hidden).init(jax.random.key(0), example))
    needed = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    check_memory(needed, device, f"hidden={as_text(tuple(hidden))} with its gradient")


def _jobs(
    plan: Plan, rung: Rung, settings: Sequence[int], models: Models, numbers: Collection[int]
) -> tuple[list[Job], list[list[int]]]:
    """A job for each program, and the models that are its members."""
    groups: dict[Any, list[int]] = {}
    for index in settings:
        first = index * plan.seeds
        mine = [m for m in range(first, first + plan.seeds) if m in numbers]
        groups.setdefault(program_key(plan.settings[index]), []).extend(mine)
    jobs, kept = [], []
    for group in groups.values():
        left = [i for i, m in enumerate(group) if len(models.get(m, ())) < plan.epochs(m, rung)]
        if left:
            run = make_run(
                plan.options | plan.settings[group[0] // plan.seeds], plan.epochs(group[0], rung)
            )
            jobs.append(Job(run, _members(plan, group), np.array(left)))
            kept.append(group)
    return jobs, kept


def _members(plan: Plan, group: Sequence[int]) -> dict[str, np.ndarray]:
    """What the models of a program differ in."""
    members = {"seed": np.array([model % plan.seeds for model in group], np.uint32)}
    settings = [plan.settings[model // plan.seeds] for model in group]
    for name, value in settings[0].items():
        if is_argument(name, value):
            dtype = np.int32 if isinstance(value, int) else np.float32
            members[name] = np.array([setting[name] for setting in settings], dtype)
    return members


def make_run(options: Setting, epochs: int) -> Run:
    """What is done for one model: `run(member, data) -> metrics`, as scripts/train.py does it.

    Args:
        options: those of a training, of the first member. A member has a "seed", and may have
            numbers that take their place.
        epochs: how many of the epochs are trained.
    """

    def run(member: dict[str, Array], data: dict[str, Dataset]) -> Metrics:
        given = options | member
        steps = given["epochs"] * -(-len(data["train"].labels) // given["batch_size"])
        names = inspect.signature(make_optimizer).parameters.keys() - {"steps"}
        tx = make_optimizer(**{k: given[k] for k in names}, steps=steps)
        # Of one program all strengths are 0 or none is.
        augment = given["augment"] if options["augment"] else None
        model, train_step, metrics = make_training(given["hidden"], given["loss"], augment, tx)
        key = jax.random.key(member["seed"])
        params = model.init(key, np.zeros((1, 784), np.float32))
        used = None if augment is None else key  # as in scripts/train.py
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key=used)

        def test(state: TrainState) -> Metrics:
            results: Metrics = {}
            for split in (name for name in data if name != "train"):
                of_split = evaluate(metrics, state.params, data[split])
                results |= {f"{split}_{name}": of_split[name] for name in ("loss", "accuracy")}
            return results

        state, trained = train(
            train_step,
            state,
            data["train"],
            key,
            epochs=epochs,
            batch_size=given["batch_size"],
            test=test,
        )
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]
        return {**trained, "finite": jnp.stack(finite).all()}

    return run


def _rows(plan: Plan, model: int, results: Metrics, i: int) -> list[Row]:
    """The rows of all epochs of the chunk's model i. What is not finite is left empty."""
    scores = {"train_loss": np.mean(results["loss"][i], axis=-1, dtype="float64")}
    scores |= {name: np.float64(results[f"test_{name}"][i]) for name in plan.scores[1:]}
    losses = np.stack([scores[name] for name in plan.scores if name.endswith("loss")])
    finite = np.isfinite(losses).all(axis=0)
    row = {"model": str(model), "seed": str(model % plan.seeds)}
    row |= {name: as_text(v) for name, v in plan.settings[model // plan.seeds].items()}
    row["diverged"] = str(int(not (finite.all() and results["finite"][i])))
    return [
        row
        | {"epoch": str(epoch + 1)}
        | {name: str(float(scores[name][epoch])) if finite[epoch] else "" for name in plan.scores}
        for epoch in range(len(finite))
    ]
