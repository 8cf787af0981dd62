"""Sources of catalogues and logs. To add one: write a class with the methods of ``Source``, and open it here."""

from __future__ import annotations

from genrec.config import Data
from genrec.data.sources.source import Source


def open_source(data: Data) -> Source:
    """The source that ``data.source`` names, checked: InputError for missing files or columns, or wrong types."""
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
