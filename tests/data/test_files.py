"""Ordinary files: what is a data file, which types and encodings are read, and how much may come out of one."""

import bz2
import gzip
import json
import logging
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_worlds import run_prepare, samples, write_world

from genrec.config import Data
from genrec.data.canonical import canonical_log, paths
from genrec.data.readers import read_items, read_sequences, read_stats
from genrec.data.sources import open_source, streams
from genrec.data.sources.csv_file import read_csv
from genrec.data.sources.json_lines import read_objects
from genrec.data.sources.locate import CSV, find_files, is_data_file, partition_values
from genrec.errors import InputError

ITEMS = {"id": ["x", "y"], "title": ["X", "Y"]}
LOG = {"user_id": list("aaaa"), "item_id": list("xyxy"), "timestamp": [1, 2, 3, 4]}
T = 1_500_511_136
ROOT = Path(__file__).parents[2]


def read(folder, **options):
    """The items, and the log as one table."""
    source = open_source(Data(path=str(folder), **options))
    return source.items(), pa.concat_tables([table for part in source.parts() for table in source.read(part)])


def column(name, values, **options):
    """One canonical column of a log."""
    log = {"user_id": ["a"] * len(values), "item_id": ["x"] * len(values), "position": range(len(values))} | {
        name: values
    }
    return canonical_log(pa.table(log), {key: key for key in log}, "the log", **options)[name].to_pylist()


@pytest.mark.parametrize(
    ("name", "is_data"),
    [
        ("p0.parquet", True),
        ("day=1/p0.parquet", True),
        ("_day=1/p0.parquet", True),
        ("P0.PARQUET", True),
        ("_temporary/p0.parquet", False),
        (".ipynb_checkpoints/p0-checkpoint.parquet", False),
        ("a/_delta_log/p0.parquet", False),
        ("._p0.parquet", False),
        ("_SUCCESS", False),
        ("README.md", False),
    ],
)
def test_hidden_files_and_files_of_other_kinds_are_no_data(name, is_data):
    assert is_data_file(name, (".parquet",)) == is_data


def test_files_are_found_in_folders_and_by_patterns_without_hidden_ones(tmp_path):
    for name in (
        "a.parquet",
        "_temporary/a.parquet",
        "day=1/b.parquet",
        ".c.parquet",
        "README.md",
        "d.parquet/e.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = [str(tmp_path / name) for name in ("a.parquet", "d.parquet/e.parquet", "day=1/b.parquet")]
    assert find_files(str(tmp_path), (".parquet",)) == wanted
    assert find_files(f"{tmp_path}/*", (".parquet",)) == wanted
    assert find_files(f"{tmp_path}/*/*.parquet", (".parquet",)) == wanted[1:]
    assert find_files(f"{tmp_path}/**/*.parquet", (".parquet",)) == wanted
    assert find_files(f"{tmp_path}/.c.parquet", (".parquet",)) == [f"{tmp_path}/.c.parquet"]  # named by the user


def test_hive_folders_are_columns(tmp_path):
    assert partition_values("/d", "/d/event=a%20b/day=__HIVE_DEFAULT_PARTITION__/p") == {"event": "a b", "day": None}
    write_world(tmp_path, LOG, ITEMS)
    (tmp_path / "interactions.parquet").unlink()
    for event, rows in (("click", slice(0, 2)), ("purchase", slice(2, 4))):
        folder = tmp_path / "interactions" / "date=2020-01-02" / f"event={event}"
        folder.mkdir(parents=True)
        log = {name: values[rows] for name, values in LOG.items() if name != "timestamp"}
        pq.write_table(pa.table(log), folder / "p.parquet")
    _, log = read(tmp_path)
    assert log["event"].to_pylist() == ["click", "click", "purchase", "purchase"]
    assert set(log["timestamp"].to_pylist()) == {int(datetime(2020, 1, 2).timestamp())}


@pytest.mark.parametrize(
    "values",
    [
        [T, T + 1, None],
        [T * 1000 + 5, T * 1000 + 1999, None],
        [T * 10**6, T * 10**6 + 10**6, 0],
        [T * 10**9 + 123456789, T * 10**9 + 10**9, None],
        [T + 0.25, T + 1.5],
        [T * 1000 + 0.25, T * 1000 + 1000.0],
        [str(T), f" {T + 1}"],
        [f"{T}.5", f"{T + 1}.0"],
        ["2017-07-20 00:38:56", "2017-07-20T00:38:57.25"],
        ["2017-07-20T02:38:56+02:00", "2017-07-20T00:38:57Z"],
        [b"2017-07-20 00:38:56", b"2017-07-20 00:38:57"],
        [Decimal(f"{T}.125"), Decimal(f"{T + 1}.5")],
        pa.array([T * 10**9 + 123456789, T * 10**9 + 10**9], pa.timestamp("ns")),
        pa.array([T * 10**3 + 7, T * 10**3 + 1000], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([T, T + 1], pa.uint64()),
        pa.array([str(T), str(T + 1)]).dictionary_encode(),
    ],
    ids=str,
)
def test_times_of_any_type_and_unit_are_epoch_seconds(values):
    found = column("timestamp", values)
    assert found[:2] == [T, T + 1] and not any(found[2:])


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_are_midnights_in_utc(kind):
    assert column("timestamp", pa.array([date(1970, 1, 3), date(5000, 1, 1)], kind)) == [2 * 86400, 95617584000]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1, T * 1000], {}, r"from 1 \(in s\) to 1500511136000 \(in ms\), wanted one unit.*data.time_unit"),
        ([253402300799, T], {}, "wanted one unit"),  # the year 9999 as "never"
        ([T * 1000], {"unit": "s"}, "after the year 5138.*data.time_unit"),
        ([-1], {"unit": "ms"}, "negative"),
        ([1e300], {}, "not epoch seconds"),
        (pa.array([2**64 - 1], pa.uint64()), {}, "not epoch seconds"),
        (["soon"], {}, "'soon'"),
        (["2017-07-20", "20/07/2017"], {}, "20/07/2017"),
    ],
)
def test_times_that_cannot_be_right_are_refused(values, options, message):
    with pytest.raises(InputError, match=message):
        column("timestamp", values, **options)


def test_the_unit_can_be_given_and_a_guessed_one_is_said_once(caplog):
    assert column("timestamp", [5000, T * 1000], unit="ms") == [5, T]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            canonical_log(
                pa.table({"u": ["a"], "i": ["x"], "t": [T * 1000]}),
                {"user_id": "u", "item_id": "i", "timestamp": "t"},
                "once.csv",
            )
    assert [record.getMessage().count("read as epoch times in ms") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([20_000_001, None], [20_000_000.0, None]),
        ([2**63 - 1, 1], [float(2**63), 1.0]),
        ([Decimal("19.99"), Decimal(1)], [pytest.approx(19.99), 1.0]),
        ([float("nan"), 2.5], [None, 2.5]),
        (["", " 4.5 "], [None, 4.5]),
        (pa.array([1.5, 2], pa.float16()), [1.5, 2.0]),
    ],
)
def test_values_of_any_number_type_are_rounded_to_floats(values, wanted):
    assert column("value", values) == wanted


@pytest.mark.parametrize("values", [["4,5"], [float("inf")], [1e300], ["five"]])
def test_values_that_are_no_floats_are_refused(values):
    with pytest.raises(InputError, match=r"column 'value' .* not numbers"):
        column("value", values)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
     pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)  # fmt: skip
def test_every_string_type_is_text(tmp_path, kind):
    items = {name: pa.array(values).cast(kind) for name, values in ITEMS.items()}
    log = {**LOG, "user_id": pa.array(LOG["user_id"]).cast(kind), "event": pa.array(["e", "", None, "e"]).cast(kind)}
    found, log = read(write_world(tmp_path, log, items))
    assert (found["id"].to_pylist(), found["title"].to_pylist()) == (["x", "y"], ["X", "Y"])
    assert (log["user_id"].to_pylist(), log["event"].to_pylist()) == (list("aaaa"), ["e", None, None, "e"])


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["A", "B"], []], pa.large_list(pa.large_string())),
        pa.array([["A", "B"], ["", ""]], pa.list_(pa.string(), 2)),
        pa.array([["A", "B"], [" ", None]], pa.list_(pa.string_view())),
        pa.array([["A", "B"], None], pa.list_view(pa.string())),
        pa.array([[["A", "B"], ["C"]], [[""]]], pa.list_(pa.list_(pa.string()))),
        pa.array([["A", "B"], None]),
        pa.array(["A > B", " "]),
        pa.array(["A|B", None]),
        pa.array(["['A', 'B']", "[]"]),
        pa.array(['["A", "B"]', ""]).cast(pa.string_view()),
    ],
    ids=str,
)  # fmt: skip
def test_categories_of_any_list_type_have_no_empty_names(values):
    assert paths(pa.chunked_array([values])).to_pylist() == [["A", "B"], []]


def test_empty_and_broken_ids_are_refused(tmp_path):
    for values in (["a", ""], pa.array([b"a", b"\xff"])):
        with pytest.raises(InputError, match=r"column 'user_id' .*(empty strings|not UTF-8)"):
            column("user_id", values)
    with pytest.raises(InputError, match="column 'id' has 1 nulls or empty strings"):
        read(write_world(tmp_path, LOG, {"id": ["x", ""]}))


def test_column_names_that_occur_twice_are_refused(tmp_path):
    write_world(tmp_path, LOG, ITEMS)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["timestamp", "timestamp"])
    pq.write_table(twice, tmp_path / "interactions.parquet")
    with pytest.raises(InputError, match=r"columns \['timestamp'\] occur more than once"):
        read(tmp_path)


def write_csv(folder, ending="", delimiter=",", encoding="utf-8", items=None, **log):
    pack = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True), ".bz2": bz2.compress}
    folder.mkdir(exist_ok=True)
    for key, columns in (("items", items or ITEMS), ("interactions", {**LOG, **log})):
        rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
        data = "".join(delimiter.join(map(str, row)) + "\n" for row in rows).encode(encoding)
        (folder / f"{key}{ending}").write_bytes(pack.get(ending[4:], bytes)(data))


@pytest.mark.parametrize("ending", CSV)
def test_text_files_are_read_also_compressed(tmp_path, ending):
    write_csv(tmp_path, ending, "\t" if "tsv" in ending else ",")
    items, log = read(tmp_path)
    assert (items["title"].to_pylist(), log["timestamp"].to_pylist()) == (["X", "Y"], [1, 2, 3, 4])


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "utf-8-sig"), ("|", "utf-8"), ("\t", "utf-8")])
def test_delimiters_and_byte_order_marks_are_recognised(tmp_path, delimiter, encoding):
    write_csv(tmp_path, ".csv", delimiter, encoding)
    assert read(tmp_path)[1]["user_id"].to_pylist() == list("aaaa")


def test_ids_in_csv_keep_their_leading_zeros_and_other_columns_are_read_as_what_they_are(tmp_path):
    items = {"id": ["007", "7"], "title": ['"a, ""b"""', ""], "price": ["1.5", ""], "categories": ["A > B", ""]}
    write_csv(tmp_path, ".csv", items=items, item_id=["007", "7"] * 2, rating=[5, "", "nan", 1.5])
    items, log = read(tmp_path)
    assert log["item_id"].to_pylist() == ["007", "7"] * 2
    assert log["value"].to_pylist() == [5.0, None, None, 1.5]
    assert items["title"].to_pylist() == ['a, "b"', ""]
    assert items["price"].to_pylist() == [1.5, None]
    assert items["categories"].to_pylist() == [["A", "B"], []]


def test_csv_and_parquet_give_the_same_data(tmp_path):
    write_csv(tmp_path / "csv", ".csv")
    csv_out = run_prepare(tmp_path / "a", tmp_path / "csv")
    parquet_out = run_prepare(tmp_path / "b", write_world(tmp_path / "parquet", LOG, ITEMS))
    assert samples(csv_out) == samples(parquet_out)
    assert read_sequences(csv_out).equals(read_sequences(parquet_out))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no header"),
        (b"user_id,item_id,timestamp\n", "the table is empty"),
        (b"user_id,item_id,timestamp\na,x\n", "Expected 3 columns, got 2"),
        ("user_id,item_id,timestamp\né,x,1\n".encode("latin-1"), "wanted UTF-8"),
        ("user_id,item_id,timestamp\na,x,1\n".encode("utf-16"), "wanted UTF-8"),
        (b"user_id,item_id,item_id,timestamp\na,x,x,1\n", r"columns \['item_id'\] occur more than once"),
        (b"user_id:item_id\na:x\n", "no column for 'user_id'"),
    ],
)
def test_text_that_is_no_table_is_refused(tmp_path, text, message):
    write_csv(tmp_path, ".csv")
    (tmp_path / "interactions.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_parquet_and_csv_in_one_folder_are_refused(tmp_path):
    (tmp_path / "interactions").mkdir()
    write_world(tmp_path, LOG, ITEMS)
    (tmp_path / "interactions.parquet").rename(tmp_path / "interactions" / "p.parquet")
    (tmp_path / "interactions" / "p.csv").write_text("user_id,item_id,timestamp\na,x,1\n")
    with pytest.raises(InputError, match=r"files of several kinds together.*data.interactions"):
        read(tmp_path)
    assert read(tmp_path, interactions="interactions/*.csv")[1].num_rows == 1


@pytest.mark.parametrize("other", ["0000000007", " 7", "7.0"])
def test_ids_that_differ_in_spelling_alone_are_named(tmp_path, other):
    path = write_world(tmp_path / "in", {**LOG, "item_id": [7, 8, 7, 8]}, {"id": [other, "8"], "title": ["X", "Y"]})
    with pytest.raises(InputError, match=rf"the catalogue has '{other}' for '7': write ids .* in the same way"):
        run_prepare(tmp_path / "out", path)


def test_duplicates_are_counted_said_and_dropped_on_request(tmp_path, caplog):
    twice = {name: values + values[:2] for name, values in LOG.items()}
    path = write_world(tmp_path / "in", twice, ITEMS)
    with caplog.at_level(logging.WARNING):
        kept = read_stats(run_prepare(tmp_path / "kept", path))
    assert "2 of 6 interactions are equal to an earlier one" in caplog.text
    dropped = read_stats(run_prepare(tmp_path / "dropped", path, "data.filters.drop_duplicates=true"))
    assert (kept["interactions"], kept["log"]["duplicates"]) == (6, 2)
    assert (dropped["interactions"], dropped["log"]["duplicates"]) == (4, 2)


def write_amazon(folder, **review):
    rows = [{"user_id": "u", "parent_asin": "B1", "rating": 5.0, "timestamp": T * 1000} | review]
    (folder / "X.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta_X.jsonl").write_text(json.dumps({"parent_asin": "B1", "title": "t"}) + "\n")


@pytest.mark.parametrize(
    ("value", "wanted"), [("", None), (None, None), (float("nan"), None), (" ", None), ("4.5", 4.5), (3, 3.0)]
)
def test_an_amazon_rating_may_be_missing_or_text(tmp_path, value, wanted):
    write_amazon(tmp_path, rating=value)
    assert read(tmp_path, source="amazon")[1]["value"].to_pylist() == [wanted]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rating", "good"), ("rating", [5]), ("rating", True), ("rating", float("inf")), ("timestamp", "today"),
     ("timestamp", 10**30), ("parent_asin", {"a": 1}), ("user_id", "\ud800")],
)  # fmt: skip
def test_an_amazon_value_that_is_no_number_or_id_is_refused_with_file_and_line(tmp_path, name, value):
    write_amazon(tmp_path, **{name: value})
    with pytest.raises(InputError, match=rf"X.jsonl, line 1: got .* {name}"):
        read(tmp_path, source="amazon")


def test_amazon_folders_may_hold_other_files(tmp_path):
    write_amazon(tmp_path)
    (tmp_path / "._X.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "README.md").write_text("# Reviews")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "old.json").mkdir()
    (tmp_path / "X.jsonl").write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tmp_path / "X.jsonl").read_bytes()))
    assert read(tmp_path, source="amazon")[1].num_rows == 1


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2"])
@pytest.mark.parametrize("key", ["interactions.csv", "X.jsonl"])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, codec, key):
    monkeypatch.setattr(streams, "FREE_BYTES", 1 << 14)
    write_csv(tmp_path, ".csv")
    line = b"user_id,item_id,timestamp\n" + b"a,x,1\n" * 200_000
    data = line if key.endswith("csv") else b"\n" * len(line)
    packed = bz2.compress(data) if codec == "bz2" else pa.compress(data, codec, asbytes=True)
    (tmp_path / key).write_bytes(packed)
    with pytest.raises(InputError, match=rf"{codec}, wanted at most 200 times its size.*decompression bomb"):
        read(tmp_path) if key.endswith("csv") else list(read_objects(str(tmp_path / key)))


@pytest.mark.parametrize("codec", [None, "gzip", "zstd", "bz2"])
def test_a_process_that_refused_the_first_rows_of_a_long_log_ends(tmp_path, codec):
    rows = b"user_id,item_id,timestamp\na,x\n" + b"".join(b"u%d,x,%d\n" % (n * 7919, n) for n in range(1_500_000))
    packed = bz2.compress(rows, 1) if codec == "bz2" else pa.compress(rows, codec, asbytes=True) if codec else rows
    (tmp_path / "log.csv").write_bytes(packed)
    run = [
        sys.executable,
        "-c",
        f"from genrec.data.sources.csv_file import read_csv; list(read_csv('{tmp_path}/log.csv'))",
    ]
    for _ in range(3):  # Arrow's thread reads on while the process ends: it once aborted it, or kept it for ever.
        ended = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        assert ended.returncode == 1 and "Expected 3 columns, got 2" in ended.stderr.splitlines()[-1]


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path, monkeypatch):
    monkeypatch.setattr("genrec.data.sources.table_file.FREE_BYTES", 1 << 16)
    write_world(tmp_path, LOG, ITEMS)
    huge = pa.table({"id": ["x", "y"], "title": ["a" * 10**6, "b" * 10**6]})
    pq.write_table(huge, tmp_path / "items.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(InputError, match=r"says that it holds 1 MiB in \d KiB.* decompression bomb"):
        read(tmp_path)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1 << 20)
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "' + b"x" * (1 << 20))
    with pytest.raises(InputError, match="line 1 is longer than 1 MiB"):
        list(read_objects(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize("data", [b"[" * 100_000, b"{" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff\xfe{}"])
def test_hostile_json_is_refused(tmp_path, data):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.jsonl, line 1: got"):
        list(read_objects(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize("line", ['{"a": "x\\ud800"}', '{"\\uDC00": 1}', "{'a': 'x\\ud800'}"])
def test_half_a_character_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "x.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"x\.jsonl, line 2: got '.*', half of a character, in "):
        list(read_objects(str(tmp_path / "x.jsonl")))


def test_items_of_other_types_in_other_files_are_joined_or_refused(tmp_path):
    write_world(tmp_path, LOG, ITEMS)
    (tmp_path / "items").mkdir()
    (tmp_path / "items.parquet").unlink()
    pq.write_table(pa.table({"id": ["x"], "price": [1]}), tmp_path / "items" / "0.parquet")
    pq.write_table(pa.table({"id": ["y"], "price": [1.5]}), tmp_path / "items" / "1.parquet")
    assert read(tmp_path)[0]["price"].to_pylist() == [1.0, 1.5]
    assert read_items(run_prepare(tmp_path / "out", tmp_path))["price"].to_pylist() == [1.0, 1.5]
    pq.write_table(pa.table({"id": ["y"], "color": [True]}), tmp_path / "items" / "1.parquet")
    pq.write_table(pa.table({"id": ["z"], "color": ["red"]}), tmp_path / "items" / "2.parquet")
    with pytest.raises(InputError, match="the same type for a column in all item files"):
        read(tmp_path)


def test_a_file_and_its_packed_copy_are_not_both_read(tmp_path):
    write_world(tmp_path, LOG, ITEMS)
    (tmp_path / "interactions.parquet").unlink()
    text = "user_id,item_id,timestamp\na,x,1\na,y,2\n"
    (tmp_path / "interactions").mkdir()
    (tmp_path / "interactions/p.csv").write_text(text)
    (tmp_path / "interactions/p.csv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(InputError, match="may be copies"):
        read(tmp_path)


def test_days_without_dashes_are_days_and_not_seconds_of_1970():
    assert column("timestamp", [20240115, None]) == [1705276800, None]
    assert column("timestamp", ["20240115"]) == [1705276800]
    assert column("timestamp", [20240115], unit="s") == [20240115]
    assert column("timestamp", [20240115, 20241345]) == [20240115, 20241345]  # no month 13: seconds


def test_the_thread_that_reads_a_csv_file_ahead_calls_no_python(tmp_path, monkeypatch):
    write_csv(tmp_path, ".csv", ",")
    given = []
    monkeypatch.setattr("pyarrow.csv.open_csv", lambda stream, *options: given.append(stream) or iter(()))
    assert not list(read_csv(str(tmp_path / "items.csv")))
    assert isinstance(given[0], pa.OSFile)
