"""The configuration files that come with the package (``configs/``), found by name from any folder."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from genrec.errors import InputError


def packaged_file(name: str) -> Path:
    """The path of ``configs/<name>``, in a checkout or in an installed wheel; it may not exist."""
    return Path(str(resources.files("configs"))) / name


def packaged_names() -> list[str]:
    """The packaged configs as one writes them: ``demo``, ``cpu``, ``versions/v1``, …"""
    folder = packaged_file(".")
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def find_config(file: str | Path) -> Path:
    """``file`` itself where such a file exists, else the packaged config of that name.

    Raises:
        InputError: neither exists; the message says which packaged name is nearest.
    """
    try:
        given = Path(file).expanduser()
        if given.is_file() or given.is_fifo():
            return given
        packaged = packaged_file(f"{str(file).removesuffix('.yaml')}.yaml")
        if packaged.is_file():
            return packaged
    except (OSError, ValueError, RuntimeError) as error:  # A name too long or with a zero byte, or no such user.
        raise InputError(f"config file {str(file)!r} cannot be looked up: {error}") from None
    if given.is_dir():
        raise InputError(f"config file {file} is a directory; wanted: the path of a YAML file in it")
    near = difflib.get_close_matches(given.stem, packaged_names(), n=1, cutoff=0.0)[0]
    raise InputError(
        f"config file not found: {file}; wanted: the path of a YAML file, or one of {', '.join(packaged_names())} "
        f"(the nearest is {near!r})"
    )
