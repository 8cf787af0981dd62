"""Learning from what is served: candidates, log-probabilities and gradients of SID path, item head and prior fused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from support.gradients import gradient
from support.pipeline import made
from support.synthetic import chain_shop, random_catalog, small_policy, tiny_config
from torch import Tensor

from cluster import pipeline
from genrec.baselines.itemknn import KnnSettings
from genrec.baselines.sparse import Sparse, csr
from genrec.baselines.train_log import newest_first
from genrec.config import Items, Rewards, Rl, load_config
from genrec.data.files import write_parquet
from genrec.data.tables import SEQUENCES
from genrec.errors import InputError
from genrec.inference.batch import KnnPrior, make_node_prior
from genrec.inference.served_search import ServedSearch, ServedWeights
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.advantages import level_advantages
from genrec.learning.rl.candidates import candidate_weights
from genrec.learning.rl.difficulty import target_ranks
from genrec.learning.rl.fixed_groups import FixedGroups, write_groups
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import generate
from genrec.learning.rl.scorer import GroupScorer
from genrec.learning.rl.served_steps import head_kl, log_shares
from genrec.learning.rl.update_loss import MicroBatch, Targets, UpdateLoss
from genrec.policy.decoding.node_prior import NodePrior
from genrec.policy.decoding.score import score
from genrec.sid.trie import Trie
from genrec.types import Group, Query, Snapshot

ITEMS, TARGET = 14, 6
CATALOG = random_catalog(ITEMS, (3, 3, 3), seed=2)
QUERY = Query(0, 0, (1, 5, 3), TARGET)
REWARD_N = torch.rand(ITEMS, generator=torch.Generator().manual_seed(4))
ROWS = Items(input="none", head=True, dims=8, mean=False)
POLICY, PROMPTS = small_policy(CATALOG, items=ROWS)
REFERENCE = {name: p.detach().clone() for name, p in small_policy(CATALOG, seed=3, items=ROWS)[0].trainable().items()}
HEAD, PRIOR = 0.7, 1.5
SCORER = GroupScorer(POLICY, PROMPTS, CATALOG.trie, reference=REFERENCE, codes_NL=CATALOG.codes_NL, head=True)
SCORE_N = np.array([0, 2.0, 0, 0, 1.0, 0, 0.2, 0, 0, 0, 3.0, 0, 0, 0])


class KnownPrior(ServedSearch):
    """Item head and prior with these weights; the prior scores every query the same."""

    def __init__(self, score_N: np.ndarray = SCORE_N, *, head: float = HEAD, prior: float = PRIOR) -> None:
        self.weights = ServedWeights(head, prior, KnnPrior(KnnSettings(), mask_seen=False))
        self._codes_NL, self._score_N, self._max_history = CATALOG.codes_NL, score_N, 6

    def prior(self, trie: Trie, queries: object, *, seen_in_training: bool) -> NodePrior | None:
        (item_E,) = self._score_N.nonzero()
        rows = len(queries)  # type: ignore[arg-type]
        where = np.repeat(np.arange(rows), len(item_E)), np.tile(item_E, rows)
        scores: Sparse = csr(np.tile(self._score_N[item_E], rows), *where, (rows, ITEMS))
        return make_node_prior(trie, self._codes_NL, scores, self.weights.prior_weight)


def fused_N(score_N: np.ndarray = SCORE_N) -> Tensor:
    """F of every item after the query's history, by the formula, with its gradient."""
    tokens_BP, mask_BP = PROMPTS.encode([QUERY.history])
    scores = score(POLICY, tokens_BP, mask_BP, CATALOG.codes_NL[None], CATALOG.trie)
    assert POLICY.item_head is not None
    head_N = POLICY.item_head.log_probabilities(scores.hidden[0][:, 0], tokens_BP)[0]
    prior_N = torch.from_numpy(0.9 * score_N / score_N.sum() + 0.1 / ITEMS).log().float()
    return (scores.logp_BGL[0].sum(-1) + HEAD * head_N + PRIOR * prior_N).softmax(0)


def served_group(settings: Rl, score_N: np.ndarray = SCORE_N) -> Group:
    """The query's candidates as they are served, with their rewards."""
    found = generate(POLICY, PROMPTS, CATALOG.trie, [QUERY], settings, version=0, seed=0, served=KnownPrior(score_N))[0]
    found.rewards_G = torch.where(found.items_G >= 0, REWARD_N[found.items_G], 0.0)
    return found


def batch_of(group: Group, settings: Rl, *, reference: bool = False) -> MicroBatch:
    """What one update learns from, with advantages r - mean(r) by item."""
    weight_BG = candidate_weights([group], settings.candidate_weight)
    advantage_BGL = level_advantages("group_mean", group.rewards_G[None], weight_BG, group.codes_GL[None])[..., :1]
    before = SCORER.reference_scores([group]) if reference else None
    targets = Targets(group.rewards_G[None], weight_BG, advantage_BGL)
    return MicroBatch([group], targets, SCORER.scores([group]), before, head_weight=HEAD)


def update_gradient(group: Group, settings: Rl) -> Tensor:
    return gradient(POLICY, UpdateLoss(settings, {})(batch_of(group, settings), torch.tensor(1.0), 1)[0])


def rl(**settings: object) -> Rl:
    return Rl(**{"kl": 0.0, "sft": 0.0, "served": True, "group": ITEMS, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(("objective", "scale"), [("grpo", 1), ("reinforce", 1), ("dr_grpo", 1), ("dapo", ITEMS)])
def test_weighted_by_their_share_the_candidates_give_the_gradient_of_the_expected_reward_of_what_is_served(
    objective: str, scale: float
) -> None:
    settings = rl(objective=objective, candidate_weight="probability")
    wanted = -scale * gradient(POLICY, (fused_N() * REWARD_N).sum())
    found = update_gradient(served_group(settings), settings)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * scale)
    names = [name for name, p in POLICY.trainable().items() for _ in range(p.numel())]
    is_head = torch.tensor([name.startswith("items.") for name in names])
    assert found[is_head].abs().max() > 1e-3 and found[~is_head].abs().max() > 1e-3, "path and head learn"
    uniform = update_gradient(served_group(settings), settings.replace(candidate_weight="uniform"))
    assert float((uniform - wanted).norm()) > 0.2 * float(wanted.norm())


def test_the_candidates_and_their_log_probabilities_are_those_of_what_is_served() -> None:
    settings = rl()
    group, wanted_N = served_group(settings), fused_N().detach()
    assert group.items_G.tolist() == wanted_N.argsort(descending=True).tolist()
    batch = batch_of(group, settings, reference=True).policy_batch
    torch.testing.assert_close(batch.old_BGL[0, :, 0], wanted_N.log()[group.items_G], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.logp_BGL, batch.old_BGL, rtol=1e-4, atol=1e-5)
    assert batch.reference_BGL is not None
    with POLICY.using(REFERENCE):
        other_N = fused_N().detach()
    torch.testing.assert_close(batch.reference_BGL[0, :, 0], other_N.log()[group.items_G], rtol=1e-4, atol=1e-5)
    few = served_group(rl(group=4))
    assert few.items_G.tolist() == group.items_G[:4].tolist()
    share_G = wanted_N[few.items_G] / wanted_N[few.items_G].sum()
    torch.testing.assert_close(batch_of(few, settings).policy_batch.old_BGL[0, :, 0], share_G.log())
    assert candidate_weights([few], "probability")[0].tolist() == pytest.approx((4 * share_G).tolist(), rel=1e-4)


def test_of_some_candidates_the_gradient_is_that_of_the_share_that_they_are_shown_with() -> None:
    settings = rl(group=5, candidate_weight="probability")
    group = served_group(settings)
    few_G = fused_N()[group.items_G]
    risk = -(few_G / few_G.sum() * group.rewards_G).sum()
    torch.testing.assert_close(update_gradient(group, settings), gradient(POLICY, risk), rtol=1e-3, atol=1e-5)


def test_what_the_prior_knows_is_no_longer_taught() -> None:
    likely = int(fused_N(np.ones(ITEMS)).argsort(descending=True)[1])

    def taught(score: float) -> tuple[float, float, float]:
        """The target's advantage, and the gradients of the expected reward and of the list-wise loss."""
        settings = rl(candidate_weight="probability")
        group = served_group(settings, np.where(np.arange(ITEMS) == likely, score, 1.0))
        group.rewards_G = (group.items_G == likely).float()
        batch = batch_of(group, settings)
        advantage = float(batch.targets.advantage_BGL[0, group.items_G == likely].squeeze())
        parts = (update_gradient(group, settings), update_gradient(group, rl(objective="listwise")))
        return advantage, *(float(part.norm()) for part in parts)

    unknown, known = taught(1.0), taught(500.0)
    assert 0.2 < unknown[0] < 1 and known[0] < 0.2 * unknown[0]
    assert known[1] < 0.3 * unknown[1] and known[2] < 0.3 * unknown[2]


def test_the_kl_has_that_of_the_head_over_all_items() -> None:
    settings = rl(kl=1.0, group=4)
    batch = batch_of(served_group(settings), settings, reference=True)
    assert batch.scores.head_BN is not None and batch.reference is not None and batch.reference.head_BN is not None
    here_N, other_N = batch.scores.head_BN[0], batch.reference.head_BN[0]
    wanted = float((here_N.exp() * (here_N - other_N)).sum().detach())
    _, measured = UpdateLoss(settings, {})(batch, torch.tensor(1.0), 1)
    levels = sum(float(measured[f"kl/{level}"].detach()) for level in (1, 2, 3))
    assert float(measured["kl/head"].detach()) == pytest.approx(wanted, rel=1e-4) and wanted > 0.01
    assert float(measured["kl"].detach()) == pytest.approx(wanted + levels, rel=1e-4)
    assert float(head_kl(batch.scores.head_BN, batch.scores.head_BN).detach()) == pytest.approx(0, abs=1e-6)


def test_empty_candidates_and_groups_without_any_have_no_gradient() -> None:
    scores = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf, -torch.inf, -torch.inf]], requires_grad=True)
    real = torch.tensor([[True, False, True], [False, False, False]])
    shares = log_shares(scores, real)
    assert shares[0].exp().tolist() == pytest.approx([0.2689, 1.0, 0.7311], abs=1e-3) and not shares[1].any()
    shares.sum().backward()
    assert scores.grad is not None and bool(scores.grad.isfinite().all())
    assert scores.grad[0, 1] == 0 and not scores.grad[1].any()


def test_a_target_that_the_search_missed_has_its_log_probability_by_head_and_prior() -> None:
    settings = rl(group=4, add_target=True)
    plain = served_group(settings.replace(add_target=False))
    missed = next(item for item in range(ITEMS) if item not in plain.items_G.tolist())
    query = Query(0, 0, QUERY.history, missed)
    arguments = (POLICY, PROMPTS, CATALOG.trie, [query], settings)
    group = generate(*arguments, version=0, seed=0, served=KnownPrior())[0]
    assert group.items_G.tolist() == [*plain.items_G.tolist()[:3], missed]
    found_G = fused_N().detach()[group.items_G]
    torch.testing.assert_close(group.score_G.softmax(0), found_G / found_G.sum(), rtol=1e-4, atol=1e-6)
    assert target_ranks([group]).tolist() == [4]


def test_the_learner_learns_from_it_and_refuses_rollouts_of_another_head() -> None:
    rewards = Rewards(rank_log=0.0)
    context = RewardContext(CATALOG.codes_NL, [""] * ITEMS, counts_N=torch.ones(ITEMS))
    settings = rl(group=6, kl=0.1, lr=1e-3, warmup=0.0, candidate_weight="probability")

    def learner() -> GrpoLearner:
        policy, prompts = small_policy(CATALOG, items=ROWS)
        reward = RewardFunction(rewards, context, active_terms(rewards))
        return GrpoLearner(policy, prompts, CATALOG.trie, reward, settings, Accelerator(cpu=True), head_weight=HEAD)

    def groups() -> list[Group]:
        queries = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]
        return generate(POLICY, PROMPTS, CATALOG.trie, queries, settings, version=0, seed=0, served=KnownPrior())

    record = learner().update(groups())
    assert record["gradient_norm"] > 0 and record["ratio/mean"] == pytest.approx(1, abs=1e-3) and record["kl/head"] >= 0
    wrong = groups()
    for group in wrong:
        assert group.head_G is not None
        group.head_G = group.head_G + torch.arange(6) * 0.1
    with pytest.raises(InputError, match="rollouts' log-probabilities differ from the learner's"):
        learner().update(wrong)


def test_fixed_groups_keep_what_head_and_prior_add(tmp_path: Path) -> None:
    group = served_group(rl(group=5))
    write_groups([group], {"served": "a"}, tmp_path / "part-00000.parquet")
    found = FixedGroups(tmp_path, CATALOG.codes_NL, {"served": "a"}).submit([QUERY], Snapshot(0, {}))[0]
    torch.testing.assert_close(found.score_G, group.score_G)
    with pytest.raises(InputError, match="groups of another served"):
        FixedGroups(tmp_path, CATALOG.codes_NL, {"served": "b"})


def shop_data(directory: Path, sequences: list[list[int]]) -> Path:
    """A data directory whose users have these train events."""
    table = {
        "user": list(range(len(sequences))),
        "user_id": [f"u{user}" for user in range(len(sequences))],
        "items": sequences,
        "split": [[1] * len(row) for row in sequences],
        "times": [list(range(len(row))) for row in sequences],
    }
    schema = pa.schema([SEQUENCES.field(name) for name in table])
    write_parquet(pa.table(table, schema), directory / "sequences" / "part-00000.parquet")
    return directory


def test_the_prior_of_a_train_query_has_not_counted_its_user(tmp_path: Path) -> None:
    # Users 0, 4 and 8 are of one fold, and they alone went from item 1 to item 2; the others from 1 to 3.
    data = shop_data(tmp_path, [[0, 1, 2] if user % 4 == 0 else [0, 1, 3] for user in range(9)])
    weights = ServedWeights(0.0, 1.0, KnnPrior(KnnSettings(), mask_seen=True))
    search = ServedSearch(weights, data, CATALOG, 4)
    queries = [Query(0, 0, (0, 1), 2), Query(1, 1, (0, 1), 3)]

    def masses(*, seen_in_training: bool) -> list[list[float]]:
        prior = search.prior(CATALOG.trie, queries, seen_in_training=seen_in_training)
        assert prior is not None
        leaves = CATALOG.trie.path(CATALOG.codes_NL[[0, 2, 3]])[:, -1]
        return prior.log_prior(2, leaves.expand(2, 1, -1))[:, 0].exp().tolist()

    trained, new = masses(seen_in_training=True), masses(seen_in_training=False)
    least = 0.1 / ITEMS
    assert trained[0][1] == pytest.approx(least, rel=1e-3), "item 2 is known from the user's own fold alone"
    assert trained[0][2] > 0.5 and trained[1][1] > 2 * least
    assert new[0] == pytest.approx(new[1]) and new[0][1] > 2 * least
    assert all(row[0] == pytest.approx(least, rel=1e-3) for row in (*trained, *new)), "seen items have no score"


def test_seen_items_are_no_candidates_where_the_run_leaves_them_out(tmp_path: Path) -> None:
    data = shop_data(tmp_path, [[0, 1, 2], [0, 1, 3], [5, 6, 7], [8, 9]])
    weights = ServedWeights(HEAD, PRIOR, KnnPrior(KnnSettings(), mask_seen=True))
    served = ServedSearch(weights, data, CATALOG, 2)
    arguments = (POLICY, PROMPTS, CATALOG.trie, [QUERY], rl())
    group = generate(*arguments, version=0, seed=0, served=served)[0]
    real = group.items_G[group.items_G >= 0].tolist()
    assert sorted(real) == [item for item in range(ITEMS) if item not in (5, 3)], "the last two are the history's"
    assert newest_first([QUERY.history], 2).tolist() == [[3, 5]]
    group.rewards_G = REWARD_N
    batch = batch_of(group, rl(), reference=True)
    assert bool(UpdateLoss(rl(kl=1.0), {})(batch, torch.tensor(1.0), 1)[0].isfinite())


def test_weights_are_written_and_read(tmp_path: Path) -> None:
    weights = ServedWeights(0.5, 2.0, KnnPrior(KnnSettings(window=3), mask_seen=True))
    weights.write(tmp_path)
    assert ServedWeights.read(tmp_path) == weights and ServedWeights.read(tmp_path).digest == weights.digest
    assert ServedWeights(0.0, 0.0, weights.prior).adds_nothing and not weights.adds_nothing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.items.head=false"], "neither a prior nor an item head"),
        (["decode.head_weight=0"], "neither a prior nor an item head"),
        (["policy.items.head=false", "decode.prior=itemknn_nodes", "decode.prior_weight=0"], "neither a prior"),
        (["decode.prior=itemknn"], r"set decode\.prior=itemknn_nodes"),
        (["learning.rl.objective=ppo"], "one step per item, and objective=ppo"),
        (["learning.rl.generation=sample"], "take generation=beam"),
        (["learning.rl.advantage=sibling"], "sibling differs by level"),
        (["learning.rl.hint=0.5"], "set hint=0"),
    ],
)
def test_what_cannot_be_served_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config([], ["learning.rl.served=true", *overrides])


SERVED = (
    *("learning.rl.served=true", "decode.prior=itemknn_nodes", "learning.sft.epochs=2"),
    *("learning.rl.candidate_weight=probability", "sid.quantizer=title"),
)


def test_a_run_learns_from_what_is_served_and_validates_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), *SERVED)
    path = made(config, "grpo").path
    weights = ServedWeights.read(made(config, "served").path)
    assert weights.prior_weight > 0 and weights.head_weight >= 0
    curve = json.loads((path / "curve.json").read_text())["curve"]
    updates = [record for record in curve if "loss" in record]
    assert len(updates) == 6 and updates[-1]["gradient_norm"] > 0
    own = made(config.replace({"learning.rl.served": False}), "grpo").path
    first = [json.loads((one / "curve.json").read_text())["curve"][0]["ndcg@10"] for one in (path, own)]
    assert first[0] > first[1], "version 0 is validated with the prior, which knows the chain"
    changes = {"groups": "fixed", "objective": "listwise", "candidate_weight": "uniform"}
    fixed = config.replace({f"learning.rl.{name}": value for name, value in changes.items()})
    assert json.loads((made(fixed, "grpo").path / "curve.json").read_text())["steps"] == 6


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_actors_generate_and_validate_what_one_process_does(tmp_path: Path) -> None:
    shop = chain_shop(tmp_path / "shop")
    here = pipeline.run(tiny_config(tmp_path / "here", shop, *SERVED), "grpo")
    numbers = ("compute.workers=1", "compute.rollout_actors=1", "compute.rollout_cpus=0.25")
    learned = pipeline.run_stage(tiny_config(tmp_path / "there", shop, *SERVED, *numbers), "grpo", here)
    weights = [(one.path / "policy.safetensors").read_bytes() for one in (here["grpo"], learned)]
    assert weights[0] == weights[1]
