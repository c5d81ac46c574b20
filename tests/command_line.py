"""The command line of the programs in stress/, from the signature of what they run."""

import argparse
import inspect
from pathlib import Path


def run(main) -> None:
    """Call `main` with what the command line gives to its parameters, by name or by place."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main).partition("\n")[0])
    for name, parameter in inspect.signature(main).parameters.items():
        default = parameter.default
        if default is parameter.empty:
            parser.add_argument(name, type=Path)
        elif isinstance(default, tuple):
            parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", default=default)
        else:
            kind = Path if default is None else type(default)
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    main(**vars(parser.parse_args()))
