"""bench stream on a shop whose customers change their ways half-way through."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.synthetic import chain_shop, tiny_config

from benchmarks import registry
from benchmarks.stream import PARTS, SYSTEMS, ratios_of
from genrec.errors import InputError


def turning_shop(directory: Path, users: int = 30, items: int = 24, length: int = 18) -> Path:
    """In the first third of the time item i + 1 follows item i, afterwards item i + 7."""
    chain_shop(directory, items=items)
    rows: list[tuple[str, str, int]] = []
    for user in range(users):
        item = user * 5
        for step in range(length):
            rows.append((f"u{user}", f"i{item % items}", 1000 * step + user))
            item += 1 if step < length // 3 else 7
    names, things, times = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"user_id": names, "item_id": things, "timestamp": times}), directory / "interactions.parquet"
    )
    return directory


@pytest.mark.slow
def test_an_updated_policy_follows_its_customers_and_a_frozen_one_does_not(tmp_path: Path) -> None:
    keys = ("steps=12", "eval_every=12", "lr=3e-2", "kl=0.0", "eval_queries=40")
    settings = [f"learning.update.{key}" for key in keys]
    config = tiny_config(tmp_path / "storage", turning_shop(tmp_path / "shop"), "learning.sft.epochs=4", *settings)
    bench = registry.run("stream", config)
    assert len(bench.figures) == (PARTS - 1) * len(SYSTEMS) * 2
    assert bench.figures["part6/updated/ndcg@10"] > bench.figures["part6/frozen/ndcg@10"] + 0.1
    assert bench.figures["part2/updated/ndcg@10"] == bench.figures["part2/frozen/ndcg@10"]
    assert bench.ratios["updated/frozen/ndcg@10"] > 1


def test_a_log_without_times_is_refused(tmp_path: Path) -> None:
    shop = chain_shop(tmp_path / "shop")
    log = pq.read_table(shop / "interactions.parquet").rename_columns(["user_id", "item_id", "position"])
    pq.write_table(log, shop / "interactions.parquet")
    with pytest.raises(InputError, match="without a time"):
        registry.run("stream", tiny_config(tmp_path / "storage", shop))


def test_the_ratios_leave_out_the_part_before_which_nothing_was_updated() -> None:
    def one(ndcg: float, minutes: float) -> dict[str, float]:
        return {"ndcg@10": ndcg, "minutes": minutes}

    first = {"part": 2, "frozen": one(0.1, 0), "updated": one(0.1, 4), "retrained": one(0.1, 4)}
    later = {"part": 3, "frozen": one(0.1, 0), "updated": one(0.12, 0.5), "retrained": one(0.16, 2)}
    wanted = {"updated/frozen/ndcg@10": 1.2, "updated/retrained/ndcg@10": 0.75, "retrained/updated/minutes": 4.0}
    assert ratios_of([first, later]) == pytest.approx(wanted)
