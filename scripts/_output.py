"""The directory of a run: what it was started with, its checkpoints, its metrics, its weights."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cli import UsageError

if TYPE_CHECKING:
    from jaxmnist.checkpoint import Checkpoint

# Options that do not make it another run: where it trains, for how long, what it leaves.
FREE = {
    *("epochs", "data_dir", "device", "devices", "compile_cache", "source"),
    *("distributed", "coordinator", "processes", "process_id", "timeout"),
    *("out", "resume", "checkpoint_every", "checkpoint_unit", "keep"),
}


class Output:
    """What `--out` names; where it is None, nothing is written and nothing is resumed."""

    def __init__(self, out: Path | None, resume: bool, keep: int) -> None:
        self.records: list[dict[str, float]] = []  # the metrics of the epochs so far
        self._out, self._resume, self._keep = out, resume, keep
        self._stack = contextlib.ExitStack()
        self._problem: str | None = None

    def __enter__(self) -> Output:
        """Lock the directory, made if need be; refuse one that holds what is no run's."""
        if self._out is None:
            return self
        from jaxmnist import checkpoint

        out, new = self._out, not self._out.exists()
        if not new and not out.is_dir():
            raise UsageError(f"--out {out}: is there already and no directory")
        foreign = not new and any(path.name[0] != "." for path in out.iterdir())
        if foreign and not (out / "config.json").exists():
            raise UsageError(f"--out {out}: is there already and no run's; name a new directory")
        self._stack.enter_context(checkpoint.lock(out))
        if new:
            self._stack.callback(self._remove_if_empty)
        self._writer = self._stack.enter_context(checkpoint.Writer(out, keep=self._keep))
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last checkpoint."""
        self._stack.close()

    def begin(self, options: Mapping[str, Any], like: Any) -> Checkpoint | None:
        """Compare the options with the run's that is there, if any; its newest good checkpoint."""
        if self._out is None:
            return None
        from jaxmnist import checkpoint

        path, found = self._out / "config.json", None
        options = json.loads(json.dumps(options, default=str))
        if path.exists():
            self._compare(_read_json(path), options)
            found, refused = checkpoint.restore(self._out, like)
            for line in refused:
                print(f"Warning: skipped a checkpoint: {line}", file=sys.stderr)
            self.records = found.config["records"] if found else []
        self._options = options
        self._replace("config.json", json.dumps(options, indent=2) + "\n")
        self._write_metrics()
        return found

    def add(self, record: dict[str, float]) -> None:
        """One more epoch's metrics."""
        self.records.append(record)
        if self._out is not None:
            with self._warning(), (self._out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def save(self, state: Any, arrays: Mapping[str, Any]) -> None:
        """Start to write a checkpoint; a failure is told once, and training goes on."""
        if self._out is None:
            return
        self._tell(self._writer.problem)
        config = {"options": self._options, "records": self.records}
        self._writer.save(state, config=config, arrays=arrays)

    def settle(self) -> None:
        """Wait for the last checkpoint. Raises the OSError that kept it from being written."""
        self._stack.close()
        if self._out is not None and self._writer.problem:
            raise OSError(self._writer.problem)

    def finish(self, params: Any) -> None:
        """Write the weights; here a failure is an error."""
        if self._out is None:
            return
        from jaxmnist.torch_compat import save_weights

        self._out.mkdir(parents=True, exist_ok=True)  # where somebody has removed it meanwhile
        save_weights(self._out / "weights.safetensors", params)
        self._replace("config.json", json.dumps(self._options, indent=2) + "\n")
        self._write_metrics()
        self.settle()

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        names = [name for name in {**there, **here} if name not in FREE]
        differing = [name for name in names if there.get(name) != here.get(name)]
        if differing:
            fields = ", ".join(f"{n} {there.get(n)} there, {here.get(n)} here" for n in differing)
            raise UsageError(f"--out {self._out}: holds another run ({fields}); name another")
        if not self._resume:
            raise UsageError(f"--out {self._out}: holds this run already; --resume goes on with it")

    def _tell(self, problem: str | None) -> None:
        if problem and problem != self._problem:
            print(f"Warning: training goes on, but {problem}", file=sys.stderr)
        self._problem = problem

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tell(f"{error.filename}: cannot be written: {error.strerror}")

    def _write_metrics(self) -> None:
        self._replace("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))

    def _replace(self, name: str, text: str) -> None:
        from jaxmnist.files import replacing

        assert self._out is not None
        with replacing(self._out / name) as file:
            file.write(text.encode())

    def _remove_if_empty(self) -> None:
        """Leave nothing behind that no run can be resumed from."""
        assert self._out is not None
        if not any(self._out.glob("*.safetensors")):
            shutil.rmtree(self._out, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    from jaxmnist import DataError

    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged; name a new directory with --out") from error
