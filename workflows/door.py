"""The door that every workflow comes in by: ``python -m workflows.<verb> CONFIG... [key=value ...] [--show]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from cluster.session import prepare_environment, require_packages
from genrec.config import Config, load_config, to_yaml
from genrec.errors import InputError


def main(
    run: Callable[..., object],
    doc: str | None,
    arguments: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Read the config, then ``run`` it. Bad input ends with one message and exit code 2.

    Args:
        options: further ``--name VALUE`` that this workflow knows, with their help; ``run`` gets those that were given.
    """
    door = parser(doc)
    for name, text in (options or {}).items():
        door.add_argument(f"--{name}", help=text)
    config = read_config(door, arguments)
    came = vars(door.parse_intermixed_args(arguments)) if options else {}
    prepare_environment(config)
    try:
        require_packages(config)
        run(config, **{name: came[name] for name in options or {} if came[name] is not None})
    except InputError as error:
        sys.exit(refused(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all workflows share."""
    shared = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.add_argument("config", nargs="*", help="YAML files, later ones win, then dotted.key=value overrides")
    shared.add_argument("--show", action="store_true", help="print the resolved config and exit")
    return shared


def read_config(door: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> Config:
    """Parse the command line into a config; exits after ``--show``, and with code 2 when the config is bad."""
    options = door.parse_intermixed_args(arguments)
    files = [text for text in options.config if "=" not in text]
    overrides = [text for text in options.config if "=" in text]
    try:
        config = load_config(files, overrides)
    except InputError as error:
        sys.exit(refused(error))
    if options.show:
        print(to_yaml(config), end="")
        sys.exit(0)
    return config


def refused(error: InputError) -> int:
    """Tell the user what was wrong; returns the exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    return 2
