"""What makes a run this run and no other: all that changes its numbers, and nothing else.

Paths, spelling, devices, and what is written where do not belong to it. Two runs of one identity
end in the same bits on one kind of device, so that a run can continue where another has stopped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmnist.datasets.synthetic import ADDED_VERSION
from jaxmnist.errors import DataError
from jaxmnist.weights import load_weights

# The options of scripts/train.py that change numbers, as config.json has them.
_OPTIONS = (
    *("batch_size", "learning_rate", "momentum", "optimizer", "weight_decay", "hidden"),
    *("loss", "torch_seed", "torch_order", "torch_test_loader", "validation"),
    *("schedule", "warmup", "augment", "synthetic_digits"),
)
# What they were in versions that did not have them.
_EARLIER = {
    **{"weight_decay": None, "validation": 0, "torch_test_loader": False},
    **{"schedule": "constant", "warmup": 0.0, "augment": 0.0, "synthetic_digits": 0},
}
# JAX's flags that change random numbers or rounding, and what they are by default.
_FLAGS = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_disable_most_optimizations": False,
    "jax_default_matmul_precision": "highest",  # scripts/train.py sets it
}
# Another version of one of these may round otherwise; a run continues, with a warning.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def record(
    groups: Mapping[str, Mapping[str, Any]], source: str, drawn_digits: bool
) -> dict[str, Any]:
    """What config.json is to hold: the options of all groups, the data, and the environment.

    `drawn_digits` says that they were taken instead of MNIST, and not asked for.
    """
    config = {name: value for options in groups.values() for name, value in options.items()}
    config |= {"source": source, "drawn_digits": drawn_digits, "added_digits": ADDED_VERSION}
    return config | {"init_sha256": _weights_digest(config["init"]), "environment": environment()}


def agreed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the processes of a job must have in common."""
    names = ("epochs", "checkpoint_every", "checkpoint_unit", "resume", "devices")
    return identity(config) | {name: config[name] for name in names}


def environment() -> dict[str, Any]:
    """JAX's flags and the packages' versions that a run's numbers depend on, to be recorded."""
    import jax

    return {
        "flags": {name: _value(jax.config.values.get(name)) for name in _FLAGS},
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers depend on, of what its `config.json` holds, of any version."""
    found = {name: config.get(name, _EARLIER.get(name)) for name in _OPTIONS}
    synthetic = config.get("dataset") == "synthetic" or bool(config.get("drawn_digits"))
    found["data"] = "drawn digits" if synthetic else "MNIST"
    # MNIST is one; and with PyTorch's stream the seed makes nothing but digits.
    free = not synthetic and config.get("torch_seed") is not None
    found["seed"] = None if free else config.get("seed")
    # Earlier versions, which did not record it, added others.
    has_added = bool(found["synthetic_digits"])
    found["added_digits"] = config.get("added_digits", 1) if has_added else None
    # Where the learning rate changes, it is by the share of all epochs that are done.
    scheduled = found["schedule"] != "constant" or found["warmup"]
    found["scheduled_epochs"] = config.get("epochs") if scheduled else None
    recorded = config.get("environment")
    flags = recorded.get("flags") if isinstance(recorded, Mapping) else None
    return found | _FLAGS | (dict(flags) if isinstance(flags, Mapping) else {})


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A phrase for each difference that makes the runs of two configs different ones."""
    a, b = identity(there), identity(here)
    differing = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    phrases = [f"{name} {a.get(name)} there, {b.get(name)} here" for name in differing]
    # The first weights are in every checkpoint; so only what is named again must be the same.
    old, new = there.get("init_sha256"), here.get("init_sha256")
    if here.get("init") is not None and there.get("init") is None:
        phrases.append(f"init none there, {here['init']} here")
    elif old and new and old != new:
        phrases.append(f"init {there['init']} there, {here['init']} with other weights here")
    return phrases


def other_versions(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """A phrase that names the packages whose version has changed; None if none is known to."""
    try:
        a, b = there["environment"]["versions"], here["environment"]["versions"]
        changed = [f"{name} {a[name]} there, {b[name]} here" for name in b if a[name] != b[name]]
    except (KeyError, TypeError):
        return None  # of a version that did not record them
    return ", ".join(changed) or None


def _weights_digest(path: Path | None) -> str | None:
    """Of the parameters to start from; None where they cannot be read, which need not matter."""
    if path is None:
        return None
    try:
        params = load_weights(path)["params"]
    except DataError:
        return None
    arrays = [params[layer][name] for layer in sorted(params) for name in sorted(params[layer])]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _value(flag: Any) -> Any:
    """A flag as JSON knows it."""
    return flag if isinstance(flag, bool | int | str | None) else str(flag)
