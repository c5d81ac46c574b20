"""How much memory there is, so that what cannot fit is refused before it is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxmnist.errors import JaxmnistError
from jaxmnist.machine import free_memory

if TYPE_CHECKING:
    import jax


def check(needed: int, device: jax.Device, what: str) -> None:
    """Raise a JaxmnistError where the device has not this many bytes."""
    there = free_memory([device])
    if there is not None and needed > there:
        raise JaxmnistError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, and there are {there / 1e9:,.1f} GB "
            "free; make --hidden or --batch-size smaller"
        )
