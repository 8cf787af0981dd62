"""Fuzzing of the readers: whatever bytes and types come, the outcome is a result or an InputError.

``FUZZ_EXAMPLES=20000 pytest tests/fuzz`` tries more inputs than the default, and other ones each time.
"""

import bz2
import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from genrec.config import Data
from genrec.data.columns import CATALOG, LOG
from genrec.data.sources import open_source
from genrec.errors import InputError

ASKED = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=ASKED or examples,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def read_all(folder: Path, **options: str) -> tuple[pa.Table, int] | None:
    """The items and the number of log rows, checked against the schemas; None if the input was refused."""
    try:
        source = open_source(Data(path=str(folder), **options))
        items = source.items()
        rows = 0
        for part in source.parts():
            for log in source.read(part):
                assert log.schema.equals(LOG)
                log.validate(full=True)
                assert log["user_id"].null_count == log["item_id"].null_count == 0
                assert all(0 <= time < 10**11 for time in log["timestamp"].drop_null().to_pylist())
                rows += log.num_rows
    except InputError as error:
        assert 20 < len(str(error)) < 5000
        return None
    items.validate(full=True)
    assert items.schema.names[: len(CATALOG)] == CATALOG.names
    assert all(name for path in items["categories"].to_pylist() for name in path)
    assert all(items["id"].to_pylist())
    return items, rows


def in_folder(write: Callable[[Path], None], **options: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        event("read" if read_all(Path(name), **options) else "refused")


TEXTS = st.one_of(
    st.sampled_from(["a", "b", "007", "7", "", " ", "nan", "1e400", "-1", "2020-01-01", "2020-01-01T00:00:00+01:00",
                     "['x', 'y']", "x > y", "train", "$1.5", "\ufeff", "\x00", "é", "99999999999999999999"]),
    st.text(max_size=5),
)  # fmt: skip
KINDS: list[tuple[pa.DataType, st.SearchStrategy]] = [
    *((kind, TEXTS) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    (pa.dictionary(pa.int8(), pa.string()), TEXTS),
    (pa.binary(), st.binary(max_size=4)),
    *((kind, st.integers(-(2**63), 2**63 - 1)) for kind in (pa.int64(), pa.duration("s"), pa.timestamp("s"))),
    *((pa.timestamp(unit, zone), st.integers(0, 2**62)) for unit in ("ms", "us", "ns") for zone in (None, "UTC")),
    (pa.int64(), st.sampled_from([0, 1, 2, 1_500_000_000, 1_500_000_000_000, 1_500_000_000 * 10**9, 10**11])),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats()),
    (pa.float64(), st.integers(0, 10**12).map(float)),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.floats(width=16)),
    (pa.decimal128(20, 3), st.decimals(-(10**15), 10**15, places=3)),
    (pa.decimal128(38, 0), st.integers(-(10**37), 10**37).map(Decimal)),
    (pa.date32(), st.dates(date(1, 1, 1))),
    (pa.date64(), st.dates(date(1, 1, 1))),
    (pa.timestamp("us"), st.datetimes(datetime(1, 1, 1))),
    (pa.time64("ns"), st.times()),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=3)),
    (pa.large_list(pa.large_string()), st.lists(TEXTS, max_size=3)),
    (pa.list_(pa.string(), 2), st.lists(TEXTS, min_size=2, max_size=2)),
    (pa.list_(pa.list_(pa.string())), st.lists(st.lists(TEXTS, max_size=2), max_size=2)),
    (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.list_(pa.struct([("a", pa.string())])), st.lists(st.fixed_dictionaries({"a": TEXTS}), max_size=2)),
    (pa.struct([("a", pa.string())]), st.fixed_dictionaries({"a": TEXTS})),
    (pa.map_(pa.string(), pa.int32()), st.lists(st.tuples(TEXTS, st.integers(0, 9)), max_size=2)),
]  # fmt: skip
LOG_NAMES = ["user_id", "item_id", "timestamp", "position", "event", "rating", "split"]
ITEM_NAMES = ["id", "title", "description", "brand", "categories", "price", "color"]


@st.composite
def column(draw: st.DrawFn, rows: int) -> pa.Array:
    kind, values = draw(st.sampled_from(KINDS))
    cells = draw(st.lists(st.none() | values if draw(st.booleans()) else values, min_size=rows, max_size=rows))
    try:
        if pa.types.is_dictionary(kind):
            return pa.array(cells, kind.value_type).dictionary_encode()
        return pa.array(cells, kind)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return pa.nulls(rows)


@st.composite
def tables(draw: st.DrawFn, names: list[str], good: dict[str, list]) -> pa.Table:
    """A table of which some columns are as they should be, and the others of any type, missing or twice."""
    rows = draw(st.sampled_from([5, 4, 3, 2, 1, 0]))
    found = [(name, pa.array(good[name][:rows])) for name in names if name in good]
    for name in draw(st.lists(st.sampled_from([*names, *names[2:]]), max_size=2)):
        fate = draw(st.sampled_from(["any"] * 14 + ["missing", "twice"]))
        found = found if fate == "twice" else [pair for pair in found if pair[0] != name]
        found += [] if fate == "missing" else [(name, draw(column(rows)))]
    return pa.Table.from_arrays([values for _, values in found], [name for name, _ in found])


GOOD_LOG = {"user_id": list("uuuvv"), "item_id": list("abcab"), "timestamp": [1, 2, 3, 4, 5]}
GOOD_ITEMS = {"id": list("abcde"), "title": list("ABCDE")}


@fuzz(60)
@given(st.lists(tables(LOG_NAMES, GOOD_LOG), min_size=1, max_size=2), st.lists(tables(ITEM_NAMES, GOOD_ITEMS),
       min_size=1, max_size=2), st.sampled_from(["", "event=x", "user_id=7", "_temporary"]))  # fmt: skip
def test_any_types_in_parquet_are_read_or_refused(logs, items, inner):
    def write(folder: Path) -> None:
        for key, parts in (("interactions", logs), ("items", items)):
            for number, table in enumerate(parts):
                file = folder / key / (inner if number else "") / f"{number}.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    pq.write_table(table, file)
                except pa.ArrowException:  # a type that Parquet does not have
                    file.unlink(missing_ok=True)

    in_folder(write)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some changed, cut off, or put in."""
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 4]))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip":
                data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
            case "cut":
                data = data[:place]
            case "insert":
                data = data[:place] + draw(st.binary(max_size=4)) + data[place:]
            case _:
                place = min(len(data), draw(st.integers(1, 40)))  # the footer of Parquet
                data = data[:-place] + bytes([draw(st.integers(0, 255))]) + data[len(data) - place + 1 :]
    return data


def parquet_bytes(table: pa.Table, **options: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


@fuzz(60)
@given(st.data(), st.sampled_from(["snappy", "zstd", "none"]))
def test_damaged_parquet_is_read_or_refused(data, compression):
    log = data.draw(damaged(parquet_bytes(pa.table(GOOD_LOG), compression=compression)))
    items = data.draw(damaged(parquet_bytes(pa.table(GOOD_ITEMS), compression=compression)))

    def write(folder: Path) -> None:
        (folder / "interactions.parquet").write_bytes(log)
        (folder / "items.parquet").write_bytes(items)

    in_folder(write)


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
ENCODINGS = ["utf-8"] * 4 + ["utf-8-sig", "latin-1", "utf-16"]


@st.composite
def csv_texts(draw: st.DrawFn, names: list[str], good: dict[str, list]) -> str:
    rows = draw(st.integers(0, 5))
    found = [*good, *draw(st.lists(st.sampled_from(names), max_size=2))]
    if draw(st.integers(0, 4)):
        found = list(dict.fromkeys(found))
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=draw(st.sampled_from(",,,;\t|")), lineterminator=draw(st.sampled_from(["\n", "\r\n"]))
    )
    writer.writerow(found)
    for row in range(rows):
        cells = [good[name][row] if name in good and draw(st.integers(0, 9)) else draw(TEXTS) for name in found]
        writer.writerow(cells[: draw(st.sampled_from([None] * 9 + [1]))])
    return out.getvalue()


@fuzz(60)
@given(csv_texts(LOG_NAMES, GOOD_LOG), csv_texts(ITEM_NAMES, GOOD_ITEMS), st.data(),
       st.sampled_from([*PACKED]), st.sampled_from(ENCODINGS))  # fmt: skip
def test_any_csv_is_read_or_refused(log, items, data, packed, encoding):
    def write(folder: Path) -> None:
        for key, text in (("interactions", log), ("items", items)):
            plain = text.encode(encoding, "replace")
            chosen = data.draw(st.sampled_from(["whole"] * 8 + ["damaged", "damaged inside"]))
            plain = data.draw(damaged(plain)) if chosen == "damaged inside" else plain
            raw = PACKED[packed](plain)
            (folder / f"{key}.csv{packed}").write_bytes(data.draw(damaged(raw)) if chosen == "damaged" else raw)

    in_folder(write)


JSON = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
REVIEW = {"user_id": "u", "parent_asin": "B1", "rating": 5.0, "timestamp": 1_500_000_000_000}
OLD = {"reviewerID": "u", "asin": "B1", "overall": "4.0", "unixReviewTime": 1_500_000_000}
META = {"parent_asin": "B1", "title": "x", "categories": ["a"], "price": 3.5, "description": ["d"], "store": "s"}


@st.composite
def objects(draw: st.DrawFn, wanted: dict) -> list[dict]:
    """Objects of which the last has a value that may be anything, or is missing."""
    name = draw(st.sampled_from([*wanted]))
    last = {**wanted, name: draw(JSON)} if draw(st.integers(0, 9)) else {k: v for k, v in wanted.items() if k != name}
    return [wanted, last] if draw(st.integers(0, 2)) else [wanted]


@fuzz(60)
@given(st.sampled_from([REVIEW, OLD]).flatmap(objects), objects(META), st.data(),
       st.sampled_from([*PACKED]), st.sampled_from([json.dumps, repr]))  # fmt: skip
def test_any_json_lines_are_read_or_refused(reviews, meta, data, packed, dump):
    def write(folder: Path) -> None:
        for name, rows in (("X", reviews), ("meta_X", meta)):
            plain = "\n".join(map(dump, rows)).encode("utf-8", "surrogatepass")
            chosen = data.draw(st.sampled_from(["whole"] * 8 + ["damaged", "damaged inside"]))
            plain = data.draw(damaged(plain)) if chosen == "damaged inside" else plain
            raw = PACKED[packed](plain)
            (folder / f"{name}.jsonl{packed}").write_bytes(data.draw(damaged(raw)) if chosen == "damaged" else raw)

    in_folder(write, source="amazon")


@fuzz(60)
@given(st.data())
def test_any_of_minionerecs_files_are_read_or_refused(data):
    header = "user_id,history_item_id,item_id\n"
    lines = {"train": "A0,[0],1\n", "valid": 'A0,"[0, 1]",2\n', "test": 'A0,"[1, 2]",0\n'}
    entry = {"title": "t", "description": "['d']", "brand": "", "categories": "a,b"}
    items: dict = {str(row): entry for row in range(3)}
    items["0"] = {**entry, data.draw(st.sampled_from([*entry])): data.draw(JSON)} if data.draw(st.booleans()) else entry
    codes: dict = {str(row): ["<a_1>"] for row in range(3)}
    codes["0"] = data.draw(JSON) if not data.draw(st.integers(0, 4)) else ["<a_2>"]
    spoiled = data.draw(st.sampled_from(["train", "valid", "test", "items", ""]))

    def write(folder: Path) -> None:
        for split, line in lines.items():
            rows = (header + line).encode()
            (folder / f"{split}.csv").write_bytes(data.draw(damaged(rows)) if split == spoiled else rows)
        text = json.dumps(items).encode()
        (folder / "T.item.json").write_bytes(data.draw(damaged(text)) if spoiled == "items" else text)
        (folder / "T.index.json").write_bytes(json.dumps(codes).encode())

    in_folder(write, source="minionerec", split="given")
