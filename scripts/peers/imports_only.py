"""What a JAX program waits for before its first own line: the imports, and nothing more."""

import flax  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401

print("{}")
