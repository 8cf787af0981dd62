"""The mixtures that ``bench tasks`` compares."""

from benchmarks import tasks
from genrec.config import load_config


def test_at_equal_exposure_every_variant_shows_the_sequences_alike() -> None:
    overrides = ("learning.sft.max_steps=50", "learning.sft.epochs=2", "learning.tasks.semantic_recovery.repeat=4")
    learning = load_config(["demo", "chat"], overrides).learning
    found = tasks.mixtures_by_exposure(learning)
    assert list(found) == ["next_item", "next_item_x3", "all", "all_next_item_x3"]
    for name, one in found.items():
        assert one.tasks.next_item.repeat == (3 if name.endswith("x3") else 1)
        assert (one.sft.max_steps, one.sft.epochs, one.instruction.balance) == (0, 2, "examples")
    assert set(found["all"].tasks.chosen) == {"next_item", *tasks.OTHERS}
    assert found["all"].tasks.semantic_recovery.repeat == 4


def test_at_equal_steps_the_shares_of_the_loss_change() -> None:
    found = tasks.mixtures(load_config(["demo", "chat"], ["learning.sft.max_steps=50"]).learning)
    assert {name: one.sft.max_steps for name, one in found.items()} == {
        "next_item": 50,
        "next_item_x3": 150,
        "all": 50,
        "all_next_item_x3": 50,
    }
    assert found["all_next_item_x3"].tasks.next_item.weight == 3
    assert {one.instruction.balance for one in found.values()} == {"weights"}
