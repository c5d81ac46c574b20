"""The directory that a run leaves: its config, its metrics, its weights; all of it or nothing."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _cli import UsageError


def check_out(out: Path | None) -> None:
    """Refuse an output directory that cannot be made or holds something, before the work."""
    from jaxmnist import JaxmnistError

    if out is None:
        return
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already; name a new directory")
    ancestor = next(parent for parent in out.absolute().parents if parent.exists())
    if not (ancestor.is_dir() and os.access(ancestor, os.W_OK)):
        raise JaxmnistError(f"--out {out}: {ancestor} is no directory that can be written to")


def save(
    out: Path, options: Mapping[str, Any], records: Sequence[Mapping[str, float]], params: Any
) -> None:
    """Write config.json, metrics.jsonl and weights.safetensors; the directory appears complete."""
    from jaxmnist.torch_compat import save_weights

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True
    ) as name:
        Path(name, "config.json").write_text(json.dumps(options, default=str, indent=2) + "\n")
        Path(name, "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        save_weights(Path(name, "weights.safetensors"), params)
        os.chmod(name, 0o755)  # a temporary directory is private
        os.replace(name, out)
