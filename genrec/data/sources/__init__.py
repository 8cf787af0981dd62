"""Sources of catalogues and logs. To add one: write a class with the methods of ``Source``, and open it here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from genrec.config import Data
from genrec.data.sources.source import Source
from genrec.errors import InputError

READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "amazon": ("items", "interactions"),
        "complete_journey": ("departments",),
        "minionerec": ("items",),
        "movielens": (),
        "parquet": ("items", "interactions", "columns", "time_unit"),
        "recbole": ("items", "interactions", "columns", "time_unit"),
    }
)
"""Which of the keys that are not for every source each of them reads."""


def open_source(data: Data) -> Source:
    """The source that ``data.source`` names, checked.

    Raises:
        InputError: missing files or columns, wrong types, or a key that this source does not read.
    """
    _refuse_unread(data)
    if data.source == "complete_journey":
        from genrec.data.sources.complete_journey import CompleteJourney

        source: Source = CompleteJourney(data)
    elif data.source == "amazon":
        from genrec.data.sources.amazon import Amazon

        source = Amazon(data)
    elif data.source == "minionerec":
        from genrec.data.sources.minionerec import MiniOneRec

        source = MiniOneRec(data)
    elif data.source == "movielens":
        from genrec.data.sources.movielens import MovieLens

        source = MovieLens(data)
    elif data.source == "recbole":
        from genrec.data.sources.recbole import RecBole

        source = RecBole(data)
    else:
        from genrec.data.sources.parquet import Parquet

        source = Parquet(data)
    source.check()
    return source


def _refuse_unread(data: Data) -> None:
    default = Data()
    for name in sorted({name for names in READS.values() for name in names} - {*READS[data.source]}):
        if getattr(data, name) != getattr(default, name):
            readers = [source for source, names in READS.items() if name in names]
            raise InputError(
                f"data.{name}: data.source={data.source} does not read it ({', '.join(readers)} would); leave it out"
            )
