"""SmolLM2-135M with LoRA and trainable SID rows: real steps of a real language model."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import gguf
import pytest
import torch
from accelerate import Accelerator
from support.synthetic import random_catalog

from genrec.config import Lora, PolicyConfig, Rewards, Rl
from genrec.errors import InputError
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import LocalRollouts
from genrec.learning.sft.batches import Rows
from genrec.learning.sft.losses import SftLoss
from genrec.learning.tasks.loss import MixedLoss
from genrec.learning.tasks.mixture import MixedBatch
from genrec.policy.backbone import build
from genrec.policy.chat import generate
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import Item, Message
from genrec.policy.decoding.beam import beam
from genrec.policy.model import Policy as Model
from genrec.policy.prompts import Prompts
from genrec.sid.catalog import Catalog
from genrec.types import Query

SETTINGS = PolicyConfig(kind="pretrained", path="smollm2", lora=Lora(rank=8, alpha=16, dropout=0.0))
HISTORIES = [[1, 2], [4, 5, 6]]
TARGETS = [3, 7]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return random_catalog(40, (8, 8, 8))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def loaded(catalog: Catalog, cache: Path) -> tuple[Model, Prompts]:
    with pytest.MonkeyPatch.context() as patch:
        # transformers reads the file three times, for seconds each.
        patch.setattr(gguf, "GGUFReader", lru_cache(gguf.GGUFReader))
        return build(SETTINGS, catalog, max_history=4, seed=0, cache=cache)


@pytest.fixture
def built(loaded: tuple[Model, Prompts]) -> tuple[Model, Prompts]:
    return deepcopy(loaded)


def test_sft_steps_lower_the_loss_and_move_adapters_and_sid_rows_alone(
    built: tuple[Model, Prompts], catalog: Catalog
) -> None:
    policy, prompts = built
    names = list(policy.trainable())
    assert any("lora_" in name for name in names)
    assert [name for name in names if "trainable_tokens" in name]
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    before = policy.snapshot(0)
    assert sum(t.numel() for t in before.tensors.values()) < 0.05 * sum(p.numel() for p in policy.parameters())
    loss = SftLoss(prompts, catalog)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=5e-3)
    batch, losses = Rows([*HISTORIES], torch.tensor(TARGETS)), []
    for _ in range(3):
        value = loss(policy, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]
    after = policy.snapshot(1)
    assert after.digest != before.digest
    assert all(not torch.equal(after.tensors[name], before.tensors[name]) for name in names)
    own = dict(policy.model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in frozen.items())


def test_grpo_takes_a_real_step_and_the_reference_stays(built: tuple[Model, Prompts], catalog: Catalog) -> None:
    policy, prompts = built
    settings = Rl(steps=2, queries=2, group=4, lr=1e-3, warmup=0.0, kl=0.1, sft=0.3, micro_queries=1)
    queries = [
        Query(i, i, tuple(history), target) for i, (history, target) in enumerate(zip(HISTORIES, TARGETS, strict=True))
    ]
    rollouts = LocalRollouts(policy, prompts, catalog.trie, settings, seed=0)
    rewards = Rewards(hit=1.0, rank_log=0.0, prefix=0.5, diversity=0.0)
    context, accelerator = RewardContext(catalog.codes_NL, [""] * 40), Accelerator(cpu=True)
    reward = RewardFunction(rewards, context, active_terms(rewards))
    learner = GrpoLearner(policy, prompts, catalog.trie, reward, settings, accelerator)
    first = learner.snapshot()
    records = [learner.update(rollouts.collect(rollouts.submit(queries, learner.snapshot()))) for _ in range(2)]
    assert records[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert records[1]["kl"] > 1e-5
    assert records[1]["sft_loss"] < records[0]["sft_loss"]
    assert learner.snapshot().digest != first.digest
    assert all(torch.equal(learner.reference[name], tensor) for name, tensor in first.tensors.items())


@torch.no_grad()
def test_the_tree_decoder_gives_the_probabilities_of_the_plain_model(
    built: tuple[Model, Prompts], catalog: Catalog
) -> None:
    policy, prompts = built
    policy.eval()
    prompts.tokens_NT = policy.sids.tokens(catalog.codes_NL)  # The plain model knows no rows of items.
    tokens_BP, mask_BP = prompts.encode([HISTORIES[1]])
    found = beam(policy, tokens_BP, mask_BP, catalog.trie, 5)
    for codes_L, logp in zip(found.codes_BWL[0], found.logp_BW[0], strict=True):
        sequence = torch.cat([tokens_BP[0], policy.sids.tokens(codes_L)])[None]
        logits = policy.model(input_ids=sequence).logits[0, tokens_BP.shape[1] - 1 :]
        total = 0.0
        for level, code in enumerate(codes_L.tolist()):
            same = (catalog.codes_NL[:, :level] == codes_L[:level]).all(-1)
            allowed = catalog.codes_NL[same, level].unique()
            start = policy.sids.base + policy.sids.offsets[level]
            total += float(logits[level, start + code] - logits[level, start + allowed].logsumexp(0))
        assert float(logp) == pytest.approx(total, abs=2e-3)


def test_a_model_that_is_not_there_is_one_clear_error(catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"policy\.path='/no/such/model'"):
        build(PolicyConfig(kind="pretrained", path="/no/such/model"), catalog, max_history=4, seed=0)


def test_it_learns_to_talk_about_items_and_answers_with_their_titles(
    built: tuple[Model, Prompts], catalog: Catalog, cache: Path
) -> None:
    policy, prompts = built
    chat_format = ChatFormat(load_tokenizer(SETTINGS, cache), policy.sids, catalog)
    questions = [Message("user", (f"What is {noun}?",)) for noun in ("the red kettle", "the blue lamp")]
    answers = [Message("assistant", ("It is ", Item(row), ".")) for row in (5, 9)]
    encoded = [chat_format.encode([question, answer]) for question, answer in zip(questions, answers, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    tokens_CS, label_CS, mask_CS = (
        pad(rows, batch_first=True)
        for rows in (
            [one.tokens_S for one in encoded],
            [one.label_S for one in encoded],
            [torch.ones_like(one.label_S) for one in encoded],
        )
    )
    batch = MixedBatch(Rows([], torch.empty(0)), torch.empty(0), tokens_CS, mask_CS, label_CS, torch.ones(2))
    loss = MixedLoss(SftLoss(prompts, catalog), catalog.trie)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=3e-3)
    for _ in range(7):
        loss(policy, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    for question, answer in zip(questions, answers, strict=True):
        reply = generate.generate_reply(policy, chat_format, catalog.trie, [question], generate.Sampling(max_tokens=16))
        assert tuple(reply.parts) == answer.parts
        assert reply.ended
