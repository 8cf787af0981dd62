"""Hard mining of a whole pass: which samples are trained a second time, resumed anywhere, on any number of workers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from support.cuts import Cut, cut_after
from support.synthetic import random_catalog, small_policy
from test_tasks import CATALOG as SHOP
from test_tasks import example_builder, queries
from torch import Tensor, nn

from genrec.config import Items, Loss, Sft, Tasks, TaskWeight
from genrec.learning.checkpoints import DirectoryCheckpoints, TrainingState
from genrec.learning.sft.batches import DenseExamples, Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.learning.sft.second_pass import FILE, HardSamples, RecordingLoss
from genrec.learning.sft.trainer import SftTrainer
from genrec.learning.tasks.loss import MixedLoss
from genrec.learning.tasks.mixture import Mixture, MixtureEpochs
from genrec.policy.backbone import build
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer

CATALOG = random_catalog(40, (5, 5, 5))
ROWS = RowExamples(pa.table({"history": [[i] for i in range(20)], "target": [i + 1 for i in range(20)]}))


class KnownLoss:
    """The loss of the row with target t is its place in ``order``: the last one is the hardest."""

    def __init__(self, order: list[int]) -> None:
        self._loss_N = torch.tensor(order).argsort().float()
        self.calls: list[list[int]] = []

    def __call__(self, policy: Any, batch: Any) -> Tensor:
        self.calls.append(batch.target_B.tolist())
        return self.per_sample(policy, batch).sum()

    def per_sample(self, policy: Any, batch: Any) -> Tensor:
        nothing = 0.0 * next(iter(policy.trainable().values())).sum()
        return self._loss_N[batch.target_B - 1] + nothing


def keep(parts: list[Tensor], values: Tensor) -> Tensor:
    parts.append(values)
    return values


def first_pass(epochs: Epochs, loss: Any, epoch: int = 0, world: int = 1, micro: int = 3) -> None:
    """Record the steps of an epoch's first pass as ``world`` workers do."""
    policy, _ = small_policy(CATALOG)
    steps = [step for step in range(epoch * epochs.steps, (epoch + 1) * epochs.steps) if epochs.is_recorded(step)]
    for step in steps:
        parts: list[Tensor] = []
        for rank in range(world):
            recording = RecordingLoss(loss)
            for piece in epochs.micro_batches(step, micro, rank, world)[0]:
                recording(policy, piece)
            epochs.record(step, recording.pieces, rank, world, partial(keep, parts))
        index = epochs.index(step)
        assert epochs.hard is not None
        epochs.hard.record(index, index, [sum(parts[1:], start=parts[0])], lambda values: values)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_samples_with_the_largest_losses_are_trained_a_second_time_on_any_number_of_workers(world: int) -> None:
    order = np.random.default_rng(1).permutation(20).tolist()
    epochs = Epochs(ROWS, 6, seed=0, second_pass=0.3)
    assert epochs.steps == 4 + 1
    first_pass(epochs, KnownLoss(order), world=world)
    assert sorted(np.concatenate([epochs.index(step) for step in range(4)])) == list(range(20))
    assert not epochs.is_recorded(4)
    assert sorted(epochs.index(4)) == sorted(order[-6:])
    assert sorted(np.concatenate([epochs.index(step) for step in range(5, 9)])) == list(range(20))


def test_each_epoch_mines_the_losses_of_its_own_pass() -> None:
    order = list(range(20))
    epochs = Epochs(ROWS, 6, seed=0, second_pass=0.3)
    first_pass(epochs, KnownLoss(order))
    assert sorted(epochs.index(4)) == order[-6:]
    first_pass(epochs, KnownLoss(order[::-1]), epoch=1)
    assert sorted(epochs.index(9)) == order[:6]


def test_a_second_pass_before_the_first_one_has_ended_is_an_error() -> None:
    epochs = Epochs(ROWS, 6, seed=0, second_pass=0.3)
    with pytest.raises(RuntimeError, match="before the first one ended"):
        epochs.index(4)


def test_without_a_second_pass_the_batches_are_those_of_the_first_pass_with_one() -> None:
    plain, mined = Epochs(ROWS, 6, seed=0), Epochs(ROWS, 6, seed=0, second_pass=0.5)
    assert plain.steps == 4 and plain.hard is None and not plain.is_recorded(0)
    for epoch in range(2):
        for step in range(4):
            assert (plain.index(epoch * 4 + step) == mined.index(epoch * mined.steps + step)).all()


def test_of_equal_losses_the_lower_number_is_taken_and_each_task_gives_its_own_share() -> None:
    hard = HardSamples([range(4), range(4, 14)], 0.3)
    index = np.arange(14)
    hard.record(index, index, [torch.tensor([0.0, 9, 9, 1, *[100.0] * 10])], lambda values: values)
    assert hard.count == 2 + 3
    assert hard.chosen().tolist() == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("head", [False, True])
def test_the_loss_of_a_batch_is_the_sum_of_its_samples_losses(head: bool) -> None:
    policy, prompts = small_policy(CATALOG, items=Items(input="none", head=head, dims=8))
    loss = SftLoss(prompts, CATALOG, smoothing=0.1, weights=Loss(weights=("focal", "rare")))
    sequences = pa.table({"items": [list(range(n)) for n in (6, 4)], "split": [[0] + [1] * (n - 1) for n in (6, 4)]})
    dense = DenseExamples(sequences, 6).take(np.arange(2))
    each = [DenseExamples(sequences, 6).take(np.array([row])) for row in range(2)]
    by_row = ROWS.take(np.array([3, 9, 1]))
    with torch.no_grad():
        for batch in (dense, by_row):
            assert loss.per_sample(policy, batch).sum().item() == pytest.approx(loss(policy, batch).item(), rel=1e-5)
        alone = [loss(policy, one).item() for one in each]
        assert loss.per_sample(policy, dense).tolist() == pytest.approx(alone, rel=1e-4)
        recording = RecordingLoss(loss)
        recording(policy, dense)
    assert recording.pieces[0].tolist() == pytest.approx([alone[0] / 5, alone[1] / 3], rel=1e-4)


def mixture_epochs(settings: Any, second_pass: float) -> tuple[MixtureEpochs, MixedLoss, Any]:
    policy, prompts = build(settings, SHOP, max_history=5, seed=0)
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, SHOP, prompts.form)
    tasks = Tasks(next_item=TaskWeight(weight=0.7), semantic_anchoring=TaskWeight(weight=0.3))
    mixture = Mixture(tasks, example_builder(), queries(), form, seed=0, max_tokens=1024)
    epochs = MixtureEpochs(mixture, 16, 0, second_pass)
    return epochs, MixedLoss(SftLoss(prompts, SHOP), SHOP.trie), policy.eval()


def test_conversations_and_next_items_are_mined_each_by_their_own_losses(tmp_path: Path) -> None:
    from support.tiny_lm import tiny_lm

    from genrec.config import Lora, PolicyConfig

    settings = PolicyConfig(kind="pretrained", path=str(tiny_lm(tmp_path)), lora=Lora(rank=2, dropout=0.0))
    epochs, loss, policy = mixture_epochs(settings, 0.5)
    (batch,), _ = epochs.micro_batches(0, 16, 0, 1)
    with torch.no_grad():
        whole = loss.per_sample(policy, batch)
        assert whole.sum().item() == pytest.approx(loss(policy, batch).item(), rel=1e-4)
        own = epochs._ordered(epochs.index(0))
        alone = [loss(policy, epochs._mixture.take(own[place : place + 1])).item() for place in range(len(own))]
    assert whole.tolist() == pytest.approx(alone, rel=1e-3, abs=1e-4)
    kinds = epochs._mixture.kinds()
    assert [len(kind) for kind in kinds] == [share.count for share in epochs._mixture.shares]
    assert epochs.hard is not None and epochs.hard.count == sum(-(-len(kind) // 2) for kind in kinds)


def train(directory: Path, saves: int = 10**9) -> tuple[nn.Module, TrainingState]:
    policy, prompts = small_policy(CATALOG)
    settings = Sft(
        example_format="rows", epochs=3, lr=1e-2, batch_size=6, micro_batch=4, checkpoint_every=1, ema_decay=0.0
    )
    checkpoints = cut_after(DirectoryCheckpoints(directory), saves)
    trainer = SftTrainer(
        policy,
        SftLoss(prompts, CATALOG),
        Epochs(ROWS, 6, seed=0, second_pass=0.5),
        settings,
        seed=0,
        accelerator=Accelerator(cpu=True),
        checkpoints=checkpoints,
        validate=lambda _: {"ndcg@10": 0.0, "hr@10": 0.0},
    )
    return policy, trainer.run()


def test_a_run_that_is_cut_in_either_pass_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    policy, state = train(tmp_path / "whole")
    assert state.step == 3 * (4 + 2)
    cuts = 0
    for _ in range(20):
        try:
            resumed, again = train(tmp_path / "cut", saves=1)
        except Cut:
            cuts += 1
            assert list((tmp_path / "cut").glob(f"checkpoint-*/{FILE}"))
            continue
        break
    assert cuts == state.step and again.curve == state.curve
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_both_ways_of_mining_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="both mine hard examples"):
        Loss(weights=("hard",), second_pass=0.3)
