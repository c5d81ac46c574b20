"""The results of a finished sweep: its table of settings, the command for the best, its figure."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxmnist import sweep_plots
from jaxmnist.ranking import Rank, Rung, over_seeds
from jaxmnist.runs.sweep_file import Models
from jaxmnist.runs.sweep_plan import Plan, as_text, scores_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Standings = Sequence[tuple[Rung, Rank]]
MAX_CURVES = 12  # settings whose curves can be distinguished


def table(plan: Plan, models: Models, places: Standings) -> list[list[str]]:
    """A row for each place: the setting, mean ± deviation of each score, what diverged, p."""
    splits = (["validation"] if plan.options["validation"] else []) + ["test"]
    scores = [f"{split}_{what}" for split in splits for what in ("accuracy", "loss")]
    scores.append("train_loss")
    halving = ["epochs"] if len(plan.rungs) > 1 else []
    names = [name.replace("_", " ") for name in [*plan.settings[0], *halving, *scores]]
    rows = [["", *names, "diverged", "p"]]  # with a single seed there is no p
    for number, (rung, place) in enumerate(places, 1):
        setting = plan.settings[place.setting]
        cells = [str(number), *map(as_text, setting.values()), *[str(rung.epochs)] * len(halving)]
        for name in scores:
            values, diverged = scores_at(plan, models, [place.setting], rung, name)
            (mean,), (deviation,) = (x[0] for x in over_seeds(values[..., None], diverged))
            cells.append(_mean_and_deviation(mean, deviation, name))
        p = "" if math.isnan(place.p) else f"{place.p:.2g}"
        rows.append([*cells, f"{place.diverged} of {plan.seeds}", p])
    return rows if plan.seeds > 1 else [row[:-1] for row in rows]


def explain(plan: Plan) -> str:
    """How the table is to be read."""
    lines = [f"Ranked by {plan.ranked_by.replace('_', ' ')}"]
    if not plan.options["validation"]:
        lines[0] += ", which favours the first; --validation N ranks by held-out training images"
    if plan.seeds > 1:
        lines.append(
            f"p: how likely the first setting leads by so much by chance (paired t-test over "
            f"{plan.seeds} seeds, not corrected for the number of settings)"
        )
    return "\n".join(lines)


def _mean_and_deviation(mean: float, deviation: float, name: str) -> str:
    form = ".2%" if name.endswith("accuracy") else ".4f"
    spread = "" if math.isnan(deviation) else f" ± {deviation:{form}}"
    return "" if math.isnan(mean) else f"{mean:{form}}{spread}"


def arguments(plan: Plan, setting: int, groups: Sequence[Any]) -> list[str]:
    """The command line's words that train a setting, but for what is so by default.

    Args:
        plan: the sweep.
        setting: its number.
        groups: dataclasses with the options, the sweep's own and others.
    """
    usual = {name: value for group in groups for name, value in vars(type(group)()).items()}
    given = {name: value for group in groups for name, value in vars(group).items()}
    options = given | plan.options | plan.settings[setting]
    words = []
    for name, value in options.items():
        if value == usual[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(value if isinstance(value, tuple) else [value])]
    return [str(word) for word in words]


def figure(plan: Plan, models: Models) -> "Figure":
    """The curves of a few settings, or what each option does to the accuracy of many.

    Of a sweep with halving all settings are shown as they were at the end of the first rung.
    """
    everyone = range(len(plan.settings))
    lengths = {plan.epochs(m, plan.rungs[0]) for m in models}
    if len(plan.settings) > MAX_CURVES or len(plan.rungs) > 1 or len(lengths) > 1:
        values, diverged = scores_at(plan, models, everyone, plan.rungs[0], plan.ranked_by)
        return sweep_plots.effects_figure(plan.settings, values, diverged, plan.ranked_by)
    split = plan.ranked_by.removesuffix("_accuracy")
    names = ("train_loss", f"{split}_loss", plan.ranked_by)
    curves = {name: _curves(plan, models, name) for name in names}
    _, diverged = scores_at(plan, models, everyone, plan.rungs[0], plan.ranked_by)
    labels = [
        ", ".join(f"{name.replace('_', ' ')} {as_text(value)}" for name, value in setting.items())
        for setting in plan.settings
    ]
    return sweep_plots.curves_figure(curves, diverged, labels)


def _curves(plan: Plan, models: Models, name: str) -> Float[np.ndarray, "settings seeds epochs"]:
    """A score of each model after each epoch."""
    values = [[float(row[name] or "nan") for row in models[m]] for m in range(plan.models)]
    return np.array(values).reshape(len(plan.settings), plan.seeds, -1)
