"""Files as people find them: RecBole's, MovieLens', Amazon's CSVs, JSON lines; whole, and damaged."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from support.data_worlds import run_prepare, samples

from genrec.data.readers import read_items, read_sequences, read_stats
from genrec.errors import InputError

RATED = [("7", "1", 5, 300), ("7", "2", 4, 100), ("7", "3", 3, 200), ("7", "4", 1, 400), ("8", "1", 2, 50)]
TOLD = ("test", "7", ("2", "3", "1"), "4")
"""The test query of user 7: what is told by time, not by line."""
MOVIES = [
    ("1", "Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
    ("2", "Misérables, Les (1995)", ["Drama", "Musical"]),
    ("3", "Heat (1995)", []),
    ("4", "Jumanji: 2 (1995)", ["Adventure"]),
]


def write(file: Path, text: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def movielens(folder: Path, version: str) -> Path:
    if version == "100k":
        from genrec.data.sources.movielens import GENRES

        flags = [["1" if genre in names else "0" for genre in GENRES] for _, _, names in MOVIES]
        rows = [
            "|".join([id_, title, "01-Jan-1995", "", "http://x", *own])
            for (id_, title, _), own in zip(MOVIES, flags, strict=True)
        ]
        write(folder / "u.item", "\n".join(rows) + "\n", "latin-1")
        write(folder / "u.data", "".join("\t".join(map(str, row)) + "\n" for row in RATED))
    elif version in ("1m", "10m"):
        rows = ["::".join([id_, title, "|".join(names) or "(no genres listed)"]) for id_, title, names in MOVIES]
        write(folder / "movies.dat", "\n".join(rows), "latin-1" if version == "1m" else "utf-8")
        write(folder / "ratings.dat", "".join("::".join(map(str, row)) + "\n" for row in RATED))
    else:
        with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
            genres = [(id_, title, "|".join(names) or "(no genres listed)") for id_, title, names in MOVIES]
            csv.writer(file).writerows([("movieId", "title", "genres"), *genres])
        write(
            folder / "ratings.csv",
            "userId,movieId,rating,timestamp\n" + "".join(f"{','.join(map(str, r))}\n" for r in RATED),
        )
    return folder


@pytest.mark.parametrize("version", ["100k", "1m", "10m", "25m"])
def test_movielens_of_each_size_gives_the_same_log(version: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = run_prepare(tmp_path / "out", movielens(tmp_path / "in", version), "data.source=movielens")
    assert TOLD in samples(out)
    items = read_items(out)
    assert list(zip(*(items[name].to_pylist() for name in ("id", "title", "categories")), strict=True)) == MOVIES
    row = read_sequences(out).to_pylist()[0]
    assert (row["values"], row["events"]) == ([4.0, 3.0, 5.0, 1.0], ["rating"] * 4)


def test_movielens_files_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = movielens(tmp_path, "1m")
    write(folder / "ratings.dat", "7::1::5::300\n7::2::4\n")
    with pytest.raises(InputError, match=r"ratings.dat cannot be read.*4 fields a row \(userId, .*divided by '::'"):
        run_prepare(tmp_path / "out", folder, "data.source=movielens")
    write(folder / "ratings.dat", "7::1::five::300\n")
    with pytest.raises(InputError, match=r"'rating' of type string with values that are not numbers"):
        run_prepare(tmp_path / "out", folder, "data.source=movielens")
    (folder / "movies.dat").unlink()
    with pytest.raises(InputError, match=r"ratings.dat is here and movies.dat is not"):
        run_prepare(tmp_path / "out", folder, "data.source=movielens")
    with pytest.raises(InputError, match=r"got no ratings; wanted the files u.data and u.item, or ratings.dat"):
        run_prepare(tmp_path / "out", tmp_path / "out", "data.source=movielens")
    write(tmp_path / "csv" / "ratings.csv", "userId,movieId,rating\n")
    write(tmp_path / "csv" / "movies.csv", "movieId,title,genres\n")
    with pytest.raises(InputError, match=r"columns \['timestamp'\] are missing"):
        run_prepare(tmp_path / "out", tmp_path / "csv", "data.source=movielens")


def recbole(folder: Path, items: bool = True) -> Path:
    lines = [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        *("\t".join(map(str, row)) for row in RATED),
    ]
    write(folder / "ml.inter", "\n".join(lines))
    if items:
        head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        rows = [
            '1\tToy "Story"\t1995\tAnimation Comedy',
            "2\t\t1995\t'Food & Drink', 'Tea'",
            "3\tHeat\t\t",
            "4\tX\t1\tWar",
        ]
        write(folder / "ml.item", "\n".join([head, *rows]) + "\n")
    return folder


def test_recboles_atomic_files_are_read_by_the_types_in_their_header(tmp_path: Path) -> None:
    out = run_prepare(tmp_path / "out", recbole(tmp_path / "in"), "data.source=recbole")
    assert TOLD in samples(out)
    items = read_items(out)
    assert items["title"].to_pylist() == ['Toy "Story"', "", "Heat", "X"]
    assert items["categories"].to_pylist() == [["Animation", "Comedy"], ["Food & Drink", "Tea"], [], ["War"]]
    assert items["release_year"].to_pylist() == ["1995", "1995", None, "1"]
    assert read_sequences(out)["values"].to_pylist()[0] == [4.0, 3.0, 5.0, 1.0]


def test_recboles_log_without_items_names_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = run_prepare(tmp_path / "out", recbole(tmp_path / "in", items=False), "data.source=recbole")
    assert TOLD in samples(out) and read_items(out)["title"].to_pylist() == ["1", "2", "3", "4"]
    assert "no .item file beside it" in caplog.text


def test_recbole_files_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = recbole(tmp_path / "in")
    write(folder / "ml.inter", "user_id\titem_id\n7\t1\n")
    with pytest.raises(
        InputError, match=r"got the columns \['user_id', 'item_id'\] without a type.*data.source=parquet"
    ):
        run_prepare(tmp_path / "out", folder, "data.source=recbole")
    write(folder / "ml.inter", "user_id:token\titem_id:token\n7\t1\n")
    with pytest.raises(InputError, match=r"neither a timestamp"):
        run_prepare(tmp_path / "out", folder, "data.source=recbole")
    write(folder / "ml.inter", "user_id:token\titem_id:token\ttimestamp:float\n7\t1\n")
    with pytest.raises(InputError, match=r"3 fields a row"):
        run_prepare(tmp_path / "out", folder, "data.source=recbole")
    write(folder / "other.inter", "user_id:token\n")
    with pytest.raises(InputError, match=r"got the .inter files \['ml.inter', 'other.inter'\], wanted one"):
        run_prepare(tmp_path / "out", folder, "data.source=recbole")


def amazon(folder: Path, splits: bool) -> Path:
    meta = [{"parent_asin": id_, "title": f"Thing {id_}", "categories": ["A"]} for id_ in ("1", "2", "3", "4")]
    write(folder / "meta_X.jsonl", "\n".join(map(json.dumps, meta)))
    rows = sorted(RATED, key=lambda row: row[3])
    lines = [f"{user},{item},{rating}.0,{time}000" for user, item, rating, time in rows]
    head = "user_id,parent_asin,rating,timestamp"
    if not splits:
        write(folder / "X.csv.gz", "\n".join([head, *lines]))
        return folder
    for name, part in (("train", lines[:3]), ("valid", lines[3:4]), ("test", lines[4:])):
        write(folder / f"X.{name}.csv", "\n".join([f"{head},history", *(f"{line},1 2" for line in part)]))
    return folder


@pytest.mark.parametrize("splits", [False, True])
def test_amazons_csv_files_of_2023_are_read_like_its_lines(splits: bool, tmp_path: Path) -> None:
    out = run_prepare(tmp_path / "out", amazon(tmp_path / "in", splits), "data.source=amazon")
    assert TOLD in samples(out)
    row = read_sequences(out).to_pylist()[0]
    assert (row["times"], row["values"], row["events"]) == ([100, 200, 300, 400], [4.0, 3.0, 5.0, 1.0], ["review"] * 4)
    assert read_stats(out)["interactions"] == 5


def test_amazons_csv_files_without_a_column_or_beside_their_lines_are_refused(tmp_path: Path) -> None:
    folder = amazon(tmp_path / "in", splits=False)
    write(folder / "X.jsonl", json.dumps({"user_id": "u", "parent_asin": "1", "rating": 1, "timestamp": 1000}))
    with pytest.raises(InputError, match=r"got reviews twice.*data.interactions"):
        run_prepare(tmp_path / "out", folder, "data.source=amazon")
    (folder / "X.jsonl").unlink()
    write(folder / "X.csv.gz", "user_id,asin,rating,timestamp\nu,1,1,1\n")
    with pytest.raises(InputError, match=r"columns \['parent_asin'\] are missing"):
        run_prepare(tmp_path / "out", folder, "data.source=amazon")


def test_json_lines_are_tables_as_csv_files_are(tmp_path: Path) -> None:
    items = [{"item_id": 1, "title": "One", "categories": ["A", "B"]}, {"item_id": 2}, {"item_id": 3, "size": 2.5}]
    write(tmp_path / "in" / "items.jsonl", "\n".join(map(json.dumps, [*items, {"item_id": 4, "size": None}])))
    rows = [{"user": u, "item": i, "rating": r, "time": t} for u, i, r, t in RATED]
    write(tmp_path / "in" / "interactions.jsonl.gz", "\n".join(map(json.dumps, rows)))
    out = run_prepare(tmp_path / "out", tmp_path / "in")
    assert TOLD in samples(out)
    found = read_items(out)
    assert found["categories"].to_pylist() == [["A", "B"], [], [], []]
    assert found["size"].to_pylist() == [None, None, "2.5", None]


def test_json_lines_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "items.jsonl", '{"item_id": 1}\n')
    write(folder / "interactions.jsonl", '{"user": 1, "item": 1, "time": 3}\n{"user": 1,\n')
    with pytest.raises(InputError, match=r"interactions.jsonl, line 2: got .*wanted JSON"):
        run_prepare(tmp_path / "out", folder)
    write(folder / "interactions.jsonl", '{"user": 1, "time": 3}\n')
    with pytest.raises(InputError, match=r"no column for 'item_id'; got"):
        run_prepare(tmp_path / "out", folder)
    write(folder / "interactions.jsonl", "\n")
    with pytest.raises(InputError, match=r"holds no object"):
        run_prepare(tmp_path / "out", folder)
