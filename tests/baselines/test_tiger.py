"""TIGER: it learns the chain over semantic IDs, its beam is exact, and what it does not read changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from baselines.test_sequential import CPU, DiesAt, Forgets, circle
from support.synthetic import random_catalog

from genrec.baselines.ranking import rank, target_ranks_of
from genrec.baselines.sequential.scoring import SequentialBaseline
from genrec.baselines.sequential.tiger import START, Tiger
from genrec.baselines.sequential.training import make_network, settings_tried, train_network
from genrec.baselines.sequential.training_windows import training_windows
from genrec.config import TigerSettings
from genrec.errors import InputError
from genrec.learning.checkpoints import DirectoryCheckpoints
from genrec.sid.catalog import Catalog

SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "head_size": 8, "inner": 32, "users": 5, "dropout": 0.0}
SOFTMAXES = ("trie", "vocabulary")


def settings(**changes):
    return TigerSettings(**{**SHAPE, "lr": 1e-2, "batch_size": 16, "epochs": 12, "beam": 12, **changes})


def catalog(items=12):
    return random_catalog(items, (3, 3, 4))


def untrained(items=12, **changes):
    """With weights large enough that items differ."""
    torch.manual_seed(0)
    network = Tiger(catalog(items), settings(layers=2, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def one_by_one(network, items_BT, lengths_B, users_B):
    """Log-probabilities (B, N) of every item's codes by the whole model, one item and one row at a time."""
    first = [1 + sum(network.trie.level_sizes[:level]) for level in range(network.trie.depth)]
    scores = torch.zeros(len(items_BT), network.n_items)
    for row, item in np.ndindex(*scores.shape):
        codes = network.codes_NL[item].tolist()
        read = [network.codes_NL[i].tolist() for i in items_BT[row, : lengths_B[row]].tolist()]
        tokens = [start + code for sid in read for start, code in zip(first, sid, strict=True)]
        user = [1 + sum(network.trie.level_sizes) + int(users_B[row]) % network.settings.users]
        written = [START, *(start + code for start, code in zip(first, codes, strict=True))][:-1]
        logits_LV = network.t5(torch.tensor([user + tokens]), decoder_input_ids=torch.tensor([written])).logits[0]
        for level, code in enumerate(codes):
            prefix = network.codes_NL[(network.codes_NL[:, :level] == torch.tensor(codes[:level])).all(1)]
            siblings = first[level] + prefix[:, level].unique()
            rivals = siblings if network.settings.softmax == "trie" else torch.arange(logits_LV.shape[1])
            scores[row, item] += logits_LV[level, first[level] + code] - logits_LV[level, rivals].logsumexp(0)
    return scores


QUERIES = (torch.tensor([[3, 1, 4], [5, 9, 2]]), torch.tensor([3, 2]), torch.tensor([8, 1]))


@pytest.mark.parametrize("softmax", SOFTMAXES)
@torch.no_grad()
def test_a_beam_as_wide_as_the_catalogue_scores_each_item_as_the_model_does_alone(softmax):
    network = untrained(softmax=softmax)
    wanted = one_by_one(network, *QUERIES)
    assert torch.allclose(network.scores(*QUERIES), wanted, atol=1e-4)
    assert wanted.std() > 0.1
    total = wanted.exp().sum(1)
    assert torch.allclose(total, torch.ones(2), atol=1e-4) if softmax == "trie" else (total < 1).all()


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_the_loss_is_what_the_model_gives_the_next_items(softmax):
    network = untrained(softmax=softmax)
    windows = training_windows(circle().log, 5, network.form)
    batch = windows.batch(np.array([0, 7, 50]))
    last_B = batch.targets_BT.max(1).values
    with torch.no_grad():
        scores_BN = one_by_one(network, batch.items_BT, batch.lengths_B, batch.users_B)
    loss = network.loss(batch)
    assert loss.item() == pytest.approx(-scores_BN.gather(1, last_B[:, None]).sum().item(), rel=1e-4)
    loss.backward()
    assert network.t5.shared.weight.grad.any()


@torch.no_grad()
def test_padding_and_what_is_older_than_it_reads_change_no_score():
    network = untrained(history=2)
    short = network.scores(torch.tensor([[7, 3]]), torch.tensor([2]), torch.tensor([0]))
    padded = (
        torch.tensor([[7, 3, 0, 0], [1, 7, 3, 5], [9, 2, 7, 3]]),
        torch.tensor([2, 3, 4]),
        torch.tensor([0, 0, 0]),
    )
    assert torch.allclose(network.scores(*padded), short.expand(3, -1), atol=1e-5)
    other = network.scores(torch.tensor([[3, 7]]), torch.tensor([2]), torch.tensor([0]))
    assert not torch.allclose(other, short, atol=1e-3)


@torch.no_grad()
def test_users_differ_and_one_that_is_not_known_has_no_token():
    network, (items, lengths, _) = untrained(), QUERIES
    two, seven, nobody = (network.scores(items, lengths, torch.full((2,), user)) for user in (2, 7, -1))
    assert torch.equal(two, seven) and not torch.allclose(two, nobody, atol=1e-3)
    none = untrained(users=0)
    assert torch.equal(none.scores(items, lengths, torch.zeros(2)), none.scores(items, lengths, torch.ones(2)))


@torch.no_grad()
def test_a_narrow_beam_finds_existing_items_alone_and_says_nothing_of_the_others():
    network = untrained(items=30, beam=4)
    scores_BN = network.scores(*QUERIES)
    found_BN = scores_BN > -torch.inf
    assert (found_BN.sum(1) == 4).all()
    wide_BN = untrained(items=30, beam=30).scores(*QUERIES)
    assert torch.allclose(scores_BN[found_BN], wide_BN[found_BN], atol=1e-5)


@pytest.mark.parametrize("sizes", [(12,), (2, 6), (1, 1, 12)])
@torch.no_grad()
def test_catalogues_of_few_levels_and_levels_without_a_choice(sizes):
    codes = torch.stack(torch.unravel_index(torch.arange(12), sizes), 1)
    network = Tiger(Catalog(codes, sizes), settings()).eval()
    assert torch.allclose(network.scores(*QUERIES).exp().sum(1), torch.ones(2), atol=1e-4)


@torch.no_grad()
def test_a_removed_item_is_no_answer():
    whole = catalog()
    network = Tiger(Catalog(whole.codes_NL, whole.level_sizes, removed=(4,)), settings()).eval()
    scores_BN = network.scores(*QUERIES)
    assert (scores_BN[:, 4] == -torch.inf).all() and (scores_BN[:, 5:] > -torch.inf).all()


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_it_learns_that_an_item_follows_another(softmax):
    model, state = train_network("tiger", circle(), settings(softmax=softmax), Forgets(), CPU, catalog())
    assert state.best > 0.9
    histories = np.array([[4, 3, 2, 1, 0], [-1] * 5])
    assert rank(model, histories[:1], 1, mask_seen=True, users_Q=np.array([3])).item() == 5
    assert rank(model, histories[:1], 12, mask_seen=True)[0, -5:].tolist() == [-1] * 5
    assert not model.dense(histories)[1].any()


def test_a_training_that_was_killed_ends_with_the_same_weights(tmp_path):
    given = (circle(users=12), settings(epochs=3, dropout=0.1))
    whole, _ = train_network("tiger", *given, Forgets(), CPU, catalog())
    with pytest.raises(KeyboardInterrupt):
        train_network("tiger", *given, DiesAt(tmp_path, 1), CPU, catalog())
    again, state = train_network("tiger", *given, DirectoryCheckpoints(tmp_path), CPU, catalog())
    assert state.epoch == 3
    for key, value in whole.network.weights().items():
        assert torch.equal(value, again.network.weights()[key]), key


def test_the_users_of_queries_are_ranked_for_as_themselves():
    class Favourites:
        def dense(self, recent_QH):
            return self.dense_of(np.full(len(recent_QH), -1), recent_QH)

        def dense_of(self, users_Q, recent_QH):
            return (np.arange(9) == users_Q[:, None]).astype(float)

    users, recent = np.arange(9)[::-1].copy(), np.full((9, 2), -1)
    for chunk in (24 * 9, 10**6):  # One query at a time, and all at once.
        asked = {"mask_seen": False, "users_Q": users, "chunk_bytes": chunk}
        assert rank(Favourites(), recent, 1, **asked)[:, 0].tolist() == users.tolist()
        assert (target_ranks_of(Favourites(), recent, users, **asked) == 1).all()
    assert (rank(Favourites(), recent, 1, mask_seen=False) == 0).all()


@pytest.mark.parametrize(("given", "came"), [(None, "none"), (catalog(7), "those of 7 items")])
def test_without_the_semantic_ids_of_its_items_it_is_refused(given, came):
    with pytest.raises(InputError, match=f"got semantic IDs: {came}, wanted those of 12"):
        make_network("tiger", circle(), settings(), given)


def test_its_weights_depend_on_the_seed_alone():
    one, two, other = (make_network("tiger", replace(circle(), seed=seed), settings(), catalog()) for seed in (0, 0, 1))
    rows = [network.t5.shared.weight for network in (one, two, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_further_trainings_vary_what_it_has():
    tried = list(settings_tried(settings(), 3, 0))
    assert len(tried) == 3 and all(one.inner == 32 for one in tried)


def test_a_baseline_of_a_network_has_no_dropout():
    assert not SequentialBaseline(untrained().train()).network.training
