"""A trained run serves the catalogue as it is now: new items are found, removed ones are not, nothing else changes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.pipeline import made
from support.served import serve
from support.synthetic import chain_shop, tiny_config

import genrec
from genrec.baselines.itemknn import KnnSettings
from genrec.config import Config, Sid
from genrec.errors import InputError
from genrec.sid import catalog_updates
from genrec.sid import embed as sid_embed
from genrec.sid.catalog import Catalog
from genrec.sid.readable import SidNames

NEW = ["new", "newer"]


class Numbers:
    """Texts that name a number lie on a line, so that item i's nearest neighbours are items i - 1 and i + 1."""

    def encode(self, texts):
        where = np.array([int("".join(c for c in text.split("\n")[0] if c.isdigit())) for text in texts]) / 24
        return np.stack([np.cos(where), np.sin(where)], axis=1).astype(np.float32)


def new_items(*rows: tuple[str, int]) -> pa.Table:
    """Items with the text of a known item, by the number of that item."""
    columns = {"id": [name for name, _ in rows], "title": [f"like number {number}" for _, number in rows]}
    empty = {"description": [""] * len(rows), "brand": [""] * len(rows)}
    return pa.table({**columns, **empty, "categories": pa.array([[]] * len(rows), pa.list_(pa.string()))})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A chain shop's SFT policy with three records: alone, mixed with ItemKNN, and steered by it on the nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sid_embed, "make_encoder", lambda settings, device: Numbers())
        storage = tmp_path_factory.mktemp("storage")
        settings = ("sid.cf_weight=0", "sid.codebook_size=4", "learning.sft.epochs=20", "seed=2", "policy.dropout=0")
        config = tiny_config(storage, chain_shop(tmp_path_factory.mktemp("shop")), *settings)
        parts = {"data": made(config, "prepare"), "catalog": made(config, "assign"), "policy": made(config, "sft")}
        knn = {"kind": "itemknn", "weight": 0.5, "power": 1.0, "settings": asdict(KnnSettings())}
        knn["head_weight"] = 1.0
        nodes = knn | {"kind": "itemknn_nodes"}
        for name, prior in (("alone", {"weight": 0.0, "head_weight": 1.0}), ("mixed", knn), ("steered", nodes)):
            about = {
                "parts": {part: f"{output.name}/{output.key}" for part, output in parts.items()},
                "prior": prior,
                "mask_seen": False,
                "config": config.model_dump(mode="json"),
            }
            (storage / "runs" / name).mkdir(parents=True)
            (storage / "runs" / name / "recommender.json").write_text(json.dumps(about))
        yield config, parts["catalog"].path, made(config, "embed").path


@pytest.fixture
def shop(run):
    """The run's directory and its functions to change the catalogue, which is as assigned again afterwards."""
    config, assigned, vectors = run
    place = Path(config.storage) / "live" / assigned.name
    shop = Shop(config, assigned, place, vectors)
    yield shop
    if place.exists():
        place.rename(place.with_name(f"{place.name}-{len(list(place.parent.iterdir()))}"))


class Shop:
    def __init__(self, config: Config, assigned: Path, place: Path, vectors: Path) -> None:
        self.config, self._where, self._vectors = config, (assigned, place), vectors

    def insert(self, *rows: tuple[str, int]) -> None:
        catalog_updates.insert(*self._where, new_items(*rows), Numbers, vectors=self._vectors, embed=self.config.embed)

    def remove(self, *ids: str) -> None:
        catalog_updates.remove(*self._where, ids)

    def load(self, name: str = "alone", **options):
        return genrec.load(Path(self.config.storage) / "runs" / name, **options)


def ids(recommender, history, k=10) -> list[str]:
    return [found.id for found in recommender.recommend(history, k)]


@pytest.mark.parametrize(("name", "place"), [("alone", 12), ("mixed", 25)])
def test_a_new_item_is_recommended_where_its_likes_are_and_may_stand_in_a_history(shop, name, place):
    """Without the prior it stands beside its likes; ItemKNN has never seen it, so mixed it stands behind them."""
    before = ids(shop.load(name), ["i3", "i4", "i5"])
    shop.insert(("new", 6))
    recommender = shop.load(name)
    after = recommender.recommend(["i3", "i4", "i5"], 25)
    assert before[0] == after[0].id == "i6"
    assert [found.title for found in after[:place] if found.id == "new"] == ["like number 6"]
    assert len(after) == 25 and len(recommender.recommend(["new", "i7"])) == 10
    assert len(recommender.recommend(["new"])) == 10


@pytest.mark.parametrize("name", ["alone", "mixed", "steered"])
def test_a_removed_item_is_never_recommended_but_may_stand_in_a_history(shop, name):
    shop.insert(("new", 6))
    shop.remove("i6", "new")
    recommender = shop.load(name)
    found = ids(recommender, ["i3", "i4", "i5"], 30)
    assert not {"i6", "new"} & set(found) and len(found) == 23
    assert ids(recommender, ["i4", "i5", "i6"], 1) == ["i7"]
    scores = [r.score for r in recommender.recommend(["i3", "i4", "i5"], 30)]
    assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_the_assigned_catalogue_can_still_be_asked_for(shop):
    shop.insert(("new", 6))
    shop.remove("i6")
    recommender = shop.load(live=False)
    assert ids(recommender, ["i3", "i4", "i5"], 1) == ["i6"] and not recommender.refresh()
    with pytest.raises(InputError, match="unknown"):
        recommender.recommend(["new"])


@pytest.mark.parametrize("name", ["alone", "mixed", "steered"])
def test_a_served_recommender_takes_over_later_changes(shop, name):
    recommender = shop.load(name)
    assert not recommender.refresh()
    shop.insert(("new", 6))
    shop.insert(("newer", 12))
    shop.remove("i6")
    assert "new" not in ids(recommender, ["i3", "i4", "i5"], 30)
    assert recommender.refresh() and not recommender.refresh()
    found = ids(recommender, ["i3", "i4", "i5"], 30)
    assert set(NEW) < set(found) and "i6" not in found
    assert found == ids(shop.load(name), ["i3", "i4", "i5"], 30)


def test_a_catalogue_of_other_sids_is_refused(shop, tmp_path):
    recommender = shop.load()
    shop.insert(("new", 6))
    where = catalog_updates.current(*shop._where)
    about = json.loads((where / "catalog.json").read_text())
    (where / "catalog.json").write_text(json.dumps({**about, "grown_from": [5]}))
    with pytest.raises(InputError, match="other items"):
        recommender.refresh()
    assert ids(recommender, ["i3", "i4", "i5"], 1) == ["i6"]


def test_a_directory_without_a_finished_run_names_the_command_that_makes_one(shop, tmp_path):
    with pytest.raises(InputError, match=r"holds no finished run.*make one with `genrec full`"):
        genrec.load(tmp_path)
    about = json.loads((Path(shop.config.storage) / "runs" / "alone" / "recommender.json").read_text())
    (tmp_path / "recommender.json").write_text(json.dumps({**about, "config": {"unknown": 1}}))
    with pytest.raises(InputError, match="holds no finished run"):
        genrec.load(tmp_path)


@pytest.mark.parametrize("name", ["alone", "mixed", "steered"])
def test_a_constraint_gives_allowed_items_in_the_order_of_the_whole_ranking(shop, name: str) -> None:
    recommender = shop.load(name)
    everything = [found.id for found in recommender.recommend(["i3", "i4"], k=24)]
    hair = genrec.Constraint(category="hair")
    assert [r.id for r in recommender.recommend(["i3", "i4"], 24, hair)] == [
        i for i in everything if int(i[1:]) % 4 == 1
    ]
    few = genrec.Constraint(allow=["i5", "i6", "i7"], deny=["i6"])
    assert {r.id for r in recommender.recommend(["i3", "i4"], 24, few)} == {"i5", "i7"}
    unseen = [r.id for r in recommender.recommend(["i3", "i4"], 24, genrec.Constraint(unseen=True))]
    assert unseen == [i for i in everything if i not in ("i3", "i4")]
    stock = np.arange(24) == 9
    assert [r.id for r in recommender.recommend(["i3"], 5, genrec.Constraint(in_stock=stock))] == ["i9"]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (genrec.Constraint(category="boats"), "no item has the category 'boats'"),
        (genrec.Constraint(allow=["nobody"]), "not in the catalogue"),
        (genrec.Constraint(price=(1.0, 2.0)), "no column 'price'"),
        (genrec.Constraint(in_stock=np.ones(3, bool)), "in_stock has 3 items"),
    ],
)
def test_a_constraint_that_the_catalogue_cannot_answer_is_refused(shop, constraint, message) -> None:
    with pytest.raises(InputError, match=message):
        shop.load("alone").recommend(["i3"], 3, constraint)


def test_an_answer_shows_the_names_of_its_codes_where_they_have_some(tmp_path):
    plain = serve(tmp_path)["alone"].recommend(["i3"], 3)
    assert [found.path for found in plain] == [()] * 3
    assigned = tmp_path / "storage" / "assign" / "made"
    levels = [[f"{level}{code}" for code in range(8)] for level in ("kind ", "brand ")]
    SidNames(Sid(quantizer="taxonomy", codebook_size=8), levels).save(assigned)
    codes = Catalog.load(assigned).codes_NL
    found = genrec.load(tmp_path / "storage" / "runs" / "alone").recommend(["i3"], 3)
    assert [(one.id, one.score) for one in found] == [(one.id, one.score) for one in plain]
    for one in found:
        kind, brand, number = codes[int(one.id[1:])].tolist()
        assert one.path == (f"kind {kind}", f"brand {brand}", str(number))
