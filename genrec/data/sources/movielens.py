"""MovieLens as GroupLens publishes it: ratings and movies, in three spellings (Harper & Konstan 2015).

    100k           u.data (tabs), u.item (| and Latin-1; 19 flags of genres)
    1m, 10m        ratings.dat, movies.dat (::)
    20m and later  ratings.csv, movies.csv

A rating is an event of type 'rating'; its stars are the value. The genres of a movie are its categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from genrec.config import Data
from genrec.data.arrow import pc
from genrec.data.canonical import canonical_items, canonical_log
from genrec.data.sources.csv_file import read_csv, read_header
from genrec.data.sources.delimited import read_delimited
from genrec.data.sources.source import Part, is_url, need_path
from genrec.data.tables import refuse_duplicate_ids
from genrec.errors import InputError

LOG_COLUMNS = ("userId", "movieId", "rating", "timestamp")
MOVIE_COLUMNS = ("movieId", "title", "genres")
NAMES = {"user_id": "userId", "item_id": "movieId", "value": "rating", "timestamp": "timestamp"}
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
OLD_MOVIE_COLUMNS = ("movieId", "title", "released", "released_on_video", "url", *GENRES)
"""Columns of ``u.item``."""
FILES = (("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))
NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class MovieLens:
    """The folder ``data.path`` with the files of one of the spellings."""

    data: Data
    ignores_unknown_items: bool = False
    whole_histories: bool = False

    def check(self) -> None:
        """Raise InputError if the files are missing, or the first rows do not have the columns."""
        if self.data.split == "given":
            raise InputError("data.split=given: MovieLens has no splits; set data.split=leave_one_out or chronological")
        log, movies = self.files()
        for file, wanted in ((log, LOG_COLUMNS), (movies, MOVIE_COLUMNS)):
            if file.endswith(".csv") and (missing := [name for name in wanted if name not in read_header(file)[0]]):
                raise InputError(f"{file}: columns {missing} are missing; got {read_header(file)[0]}")

    def files(self) -> list[str]:
        """Ratings, then movies."""
        folder = need_path(self.data.path, "movielens")
        if is_url(folder):
            raise InputError(f"data.path={folder}: MovieLens is read from a local folder; download and unpack it")
        for names in FILES:
            if (Path(folder) / names[0]).is_file():
                if not (Path(folder) / names[1]).is_file():
                    raise InputError(f"{folder}: {names[0]} is here and {names[1]} is not; copy it from the archive")
                return [str(Path(folder) / name) for name in names]
        pairs = ", or ".join(" and ".join(names) for names in FILES)
        raise InputError(f"{folder}: got no ratings; wanted the files {pairs}")

    def items(self) -> pa.Table:
        """Movies with their title and genres."""
        file = self.files()[1]
        movies = pa.concat_tables(_movies(file))
        genres = pc.if_else(pc.equal(movies["genres"], NO_GENRES), "", movies["genres"])
        table = movies.select(["movieId", "title"]).append_column("categories", genres)
        found = {"id": "movieId", "title": "title", "categories": "categories"}
        items = canonical_items(table, found, file)
        refuse_duplicate_ids(items["id"], file, "movieId")
        return items

    def parts(self) -> list[Part]:
        """The file of ratings."""
        return [Part(self.files()[0])]

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Ratings in canonical columns."""
        for table in _ratings(part.path):
            events = pa.repeat(pa.scalar("rating"), table.num_rows)
            yield canonical_log(table.append_column("event", events), NAMES | {"event": "event"}, part.path, "s")


def _ratings(file: str) -> Iterator[pa.Table]:
    if file.endswith(".csv"):
        return read_csv(file, LOG_COLUMNS)
    return read_delimited(file, LOG_COLUMNS, "::" if file.endswith(".dat") else "\t")


def _movies(file: str) -> Iterator[pa.Table]:
    if file.endswith(".csv"):
        return read_csv(file, MOVIE_COLUMNS)
    if file.endswith(".dat"):
        return read_delimited(file, MOVIE_COLUMNS, "::", other="latin-1")  # 10m: UTF-8
    return (_with_genres(table) for table in read_delimited(file, OLD_MOVIE_COLUMNS, "|", encoding="latin-1"))


def _with_genres(table: pa.Table) -> pa.Table:
    """The 19 flags of a movie as the names of its genres."""
    named: list[Any] = [pc.if_else(pc.equal(table[genre], "1"), genre, "") for genre in GENRES]
    genres = pc.binary_join_element_wise(*named, "|")
    return table.select(["movieId", "title"]).append_column("genres", genres)
