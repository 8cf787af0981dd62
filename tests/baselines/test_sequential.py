"""Sequential baselines: each learns the chain, resumes exactly, and has what is special about it."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from genrec.baselines.material import Material
from genrec.baselines.ranking import rank, target_ranks_of
from genrec.baselines.sequential.bert4rec import Bert4Rec
from genrec.baselines.sequential.bsarec import BsaRec, low_pass
from genrec.baselines.sequential.hstu import pointwise_attention
from genrec.baselines.sequential.item_losses import binary, full_softmax, sampled_softmax
from genrec.baselines.sequential.network import dropout
from genrec.baselines.sequential.training import NETWORKS, make_network, settings_tried, train_network
from genrec.baselines.sequential.training_windows import NOTHING, WindowBatch, training_windows
from genrec.baselines.train_log import TrainLog
from genrec.config import SID_BASELINES, Baselines, Bert4recSettings, BsarecSettings, SasrecSettings
from genrec.errors import InputError
from genrec.learning.checkpoints import DirectoryCheckpoints
from genrec.metrics import target_ranks

CPU = torch.device("cpu")
SMALL = {"hidden": 16, "layers": 1, "heads": 2, "dropout": 0.1, "lr": 1e-2, "batch_size": 16, "epochs": 25}


class Forgets:
    """Checkpoints that keep nothing."""

    def latest(self):
        return nullcontext(None)

    def save(self, write, metrics):
        """Nothing."""


def log_of(*walks, items=12):
    users = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks])
    flat = np.concatenate([np.asarray(walk) for walk in walks])
    return TrainLog(flat, users, np.arange(len(flat)), items)


def circle(users=40, items=12, length=6):
    """Everyone walks round the circle of items; the queries ask for the next step."""
    starts = np.random.default_rng(0).integers(0, items, users)
    walks = [[int(start + step) % items for step in range(length)] for start in starts]
    recent_QH = np.array([walk[::-1][:5] for walk in walks])
    targets_Q = np.array([(walk[-1] + 1) % items for walk in walks])
    return Material(log_of(*walks, items=items), recent_QH, targets_Q, np.arange(users), 5, 0)


def settings_of(name, **changes):
    return getattr(Baselines(), name).replace({**SMALL, **changes})


ITEM_NETWORKS = [name for name in NETWORKS if name not in SID_BASELINES]


@pytest.mark.parametrize("name", ITEM_NETWORKS)
def test_each_network_learns_that_an_item_follows_another(name):
    epochs = 80 if name == "bert4rec" else 25  # What it learns is harder than what it is asked.
    model, state = train_network(name, circle(), settings_of(name, epochs=epochs, patience=25), Forgets(), CPU)
    assert state.best > 0.95
    histories = np.array([[4, 3, 2, 1, 0], [-1] * 5])
    assert rank(model, histories[:1], 1, mask_seen=True).item() == 5
    assert not model.dense(histories)[1].any()


@pytest.mark.parametrize("loss", ["full", "sampled", "bce"])
def test_each_loss_learns_the_circle(loss):
    _, state = train_network("sasrec", circle(), settings_of("sasrec", loss=loss, negatives=4), Forgets(), CPU)
    assert state.best > 0.95


def test_a_causal_rescaler_learns_too_and_a_later_item_does_not_change_an_earlier_state():
    settings = settings_of("bsarec", causal=True)
    assert train_network("bsarec", circle(), settings, Forgets(), CPU)[1].best > 0.95
    network = BsaRec(12, 5, settings).eval()
    one, two = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 9]])
    assert torch.equal(network(one, torch.tensor([3]))[:, :2], network(two, torch.tensor([3]))[:, :2])


class DiesAt(DirectoryCheckpoints):
    """Raises after a number of saved checkpoints."""

    def __init__(self, directory: Path, saves: int) -> None:
        super().__init__(directory)
        self.left = saves

    def save(self, write, metrics):
        super().save(write, metrics)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_training_that_was_killed_ends_with_the_same_weights(tmp_path, name):
    settings = settings_of(name, epochs=4)
    whole, _ = train_network(name, circle(), settings, Forgets(), CPU)
    with pytest.raises(KeyboardInterrupt):
        train_network(name, circle(), settings, DiesAt(tmp_path, 2), CPU)
    again, state = train_network(name, circle(), settings, DirectoryCheckpoints(tmp_path), CPU)
    assert state.epoch == 4 and len(state.curve) == 4
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="lower its lr"):
        train_network("sasrec", circle(), settings_of("sasrec", lr=1e30), Forgets(), CPU)


def test_patience_ends_a_training_and_the_best_epoch_is_kept():
    model, state = train_network("sasrec", circle(), settings_of("sasrec", epochs=200, patience=2), Forgets(), CPU)
    assert state.epoch == state.best_epoch + 2 and circle().ndcg(model) == pytest.approx(state.best)


def test_further_trainings_draw_other_settings_from_the_seed():
    tried = list(settings_tried(SasrecSettings(), 4, 0))
    assert tried[0] == SasrecSettings() and len({str(one) for one in tried}) > 2
    assert tried == list(settings_tried(SasrecSettings(), 4, 0))


def test_the_softmax_over_all_items_has_the_value_and_gradients_of_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(size, 8, generator=generator).requires_grad_() for size in (50, 30))
    target = torch.randint(30, (50,), generator=generator)
    loss = full_softmax(x, rows, target)
    wanted = F.cross_entropy(x @ rows.T, target, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for own, other in zip(
        torch.autograd.grad(2 * loss, (x, rows)), torch.autograd.grad(2 * wanted, (x, rows)), strict=True
    ):
        assert torch.allclose(own, other, atol=1e-5)


def test_a_sampled_softmax_over_each_other_item_once_is_the_softmax_over_all():
    generator = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(size, 4, generator=generator) for size in (1, 6))
    target = torch.tensor([2])
    others = torch.tensor([0, 1, 3, 4, 5])
    assert sampled_softmax(x, rows, target, others).item() == pytest.approx(full_softmax(x, rows, target).item(), 1e-5)
    # A negative that is the target is no negative; each of the others stands for 5 / 6 of an item.
    with_target = sampled_softmax(x, rows, target, torch.arange(6))
    score = (x @ rows.T)[0]
    total = score[2].exp() + 5 / 6 * score[others].exp().sum()
    assert with_target.item() == pytest.approx((total.log() - score[2]).item(), 1e-5)


def test_the_binary_loss_is_that_of_sasrec():
    x, rows = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])
    loss = binary(x, rows, torch.tensor([0]), torch.tensor([[1, 2]]))
    wanted = -torch.sigmoid(torch.tensor(2.0)).log() - (1 - torch.sigmoid(torch.tensor([-1.0, 0.5]))).log().mean()
    assert loss.item() == pytest.approx(wanted.item(), 1e-5)


@pytest.mark.parametrize(("period", "cutoff"), [(50, 5), (50, 3), (8, 9), (9, 99)])
def test_the_low_pass_matrix_keeps_the_lowest_frequencies_as_the_fourier_transform_does(period, cutoff):
    x = torch.randn(period, 3)
    spectrum = torch.fft.rfft(x, dim=0, norm="ortho")
    spectrum[cutoff // 2 + 1 :] = 0
    wanted = torch.fft.irfft(spectrum, n=period, dim=0, norm="ortho")
    assert torch.allclose(low_pass(period, cutoff, period) @ x, wanted, atol=1e-5)


def test_what_is_behind_a_history_does_not_change_what_bsarec_reads():
    network = BsaRec(12, 5, BsarecSettings().replace(SMALL)).eval()
    short, padded = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 7, 8]])
    lengths = torch.tensor([3])
    assert torch.allclose(network.last(short, lengths), network.last(padded, lengths), atol=1e-6)
    assert not torch.allclose(network(short, lengths)[:, 0], network(torch.tensor([[1, 2, 9]]), lengths)[:, 0])


def test_bert4rec_hides_the_newest_item_and_a_share_of_the_others_and_predicts_these_alone():
    network = Bert4Rec(1000, 20, Bert4recSettings(masked=0.25).replace(SMALL))
    items = torch.arange(400).view(20, 20)
    targets = torch.where(torch.arange(20) == 19, items + 1, items + 1)
    batch = network.prepared(WindowBatch(items, torch.tensor([20] * 19 + [4]), targets, torch.arange(20)))
    hidden = batch.targets_BT != NOTHING
    assert torch.equal(batch.items_BT == 1000, hidden) and hidden[:19, 20].all() and hidden[19, 4]
    assert not hidden[19, 5:].any()  # Nothing behind the end of the short one.
    assert batch.targets_BT[0, 20] == 20 and batch.targets_BT[19, 4] == 384
    assert 0.15 < hidden[:19, :20].float().mean() < 0.35
    whole = torch.cat([items, targets[:, -1:]], 1)
    assert torch.equal(batch.targets_BT[:19][hidden[:19]], whole[:19][hidden[:19]])


def test_bert4rec_asks_with_a_mask_behind_the_history():
    network = Bert4Rec(12, 5, Bert4recSettings().replace(SMALL)).eval()
    asked = network.last(torch.tensor([[1, 2, 7]]), torch.tensor([2]))
    assert torch.allclose(asked, network(torch.tensor([[1, 2, 12]]), torch.tensor([3]))[:, 2], atol=1e-6)


def test_pointwise_attention_is_that_of_hstu():
    q, k, v, bias = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4), torch.randn(3, 3)
    mixed = pointwise_attention(q, k, v, bias, 7)
    for place in range(3):
        wanted = sum(
            F.silu(q[0, 0, place] @ k[0, 0, past] + bias[place, past]) * v[0, 0, past] / 7 for past in range(place + 1)
        )
        assert torch.allclose(mixed[0, 0, place], wanted, atol=1e-5)


def test_each_event_with_one_before_it_is_predicted_once():
    log = log_of([0, 1, 2, 3, 4, 5, 6], [7], [8, 9])
    dense = training_windows(log, 3, "dense")
    batch = dense.batch(np.arange(len(dense.starts_S)))
    assert sorted(batch.targets_BT[batch.targets_BT >= 0].tolist()) == [1, 2, 3, 4, 5, 6, 9] and dense.targets == 7
    rows = training_windows(log, 3, "rows")
    batch = rows.batch(np.arange(len(rows.starts_S)))
    seen = {
        tuple(items[:length]): targets[length - 1]
        for items, length, targets, _ in zip(*(one.tolist() for one in vars(batch).values()), strict=True)
    }
    assert seen == {(0,): 1, (0, 1): 2, (0, 1, 2): 3, (1, 2, 3): 4, (2, 3, 4): 5, (3, 4, 5): 6, (8,): 9}
    assert batch.users_B.tolist() == [0] * 6 + [2]


def test_an_epoch_shows_each_window_once_in_an_order_of_its_own():
    windows = training_windows(circle().log, 5, "rows")
    first, again, second = (list(windows.epoch(number, 16, 0)) for number in (0, 0, 1))
    assert sum(len(batch.lengths_B) for batch in first) == len(windows.starts_S)
    assert torch.equal(first[0].items_BT, again[0].items_BT)
    assert not all(torch.equal(a.items_BT, b.items_BT) for a, b in zip(first, second, strict=True))


def test_without_a_next_item_there_is_nothing_to_learn():
    with pytest.raises(InputError, match="no user has two train events"):
        training_windows(log_of([1], [2]), 5, "dense")


def test_dropout_keeps_the_mean_and_drops_the_share():
    torch.manual_seed(0)
    x = torch.ones(101, 99)
    dropped = dropout(x, 0.5, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and abs(dropped.mean().item() - 1) < 0.05
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("mask_seen", [True, False])
def test_counted_ranks_are_those_of_the_sorted_list(mask_seen):
    class Ties:
        def dense(self, recent_QH):
            return np.random.default_rng(int(recent_QH.sum())).integers(0, 4, (len(recent_QH), 9)).astype(float)

    recent = np.random.default_rng(0).integers(0, 9, (30, 3))
    targets = np.random.default_rng(1).integers(0, 9, 30)
    ranked = rank(Ties(), recent, 9, mask_seen=mask_seen)
    assert np.array_equal(target_ranks_of(Ties(), recent, targets, mask_seen=mask_seen), target_ranks(ranked, targets))


def test_weights_depend_on_the_seed_alone():
    one, two, other = (
        make_network("sasrec", replace(circle(), seed=seed), settings_of("sasrec")) for seed in (0, 0, 1)
    )
    assert torch.equal(one.rows_ND, two.rows_ND) and not torch.equal(one.rows_ND, other.rows_ND)


def test_scores_that_are_no_numbers_are_refused_and_not_ranked_first():
    with pytest.raises(InputError, match="no numbers"):
        train_network("sasrec", circle(), settings_of("sasrec", lr=1e20, epochs=1, batch_size=1000), Forgets(), CPU)
