"""PPO's value network with last layers of its own: what it computes, what it shares, and what it learns."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.synthetic import random_catalog, small_policy, tiny_pretrained

from genrec.config import Lora, PolicyConfig, Rewards, Rl
from genrec.errors import InputError
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import LocalRollouts
from genrec.learning.rl.value_network import ValueNetwork, _Body
from genrec.policy.backbone import build
from genrec.policy.decoding.score import states
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.types import Query

CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]


def built(tmp_path: Path, arch: str) -> tuple[Policy, Prompts]:
    if arch != "lora":
        return small_policy(CATALOG, arch)
    settings = PolicyConfig(kind="pretrained", path=str(tiny_pretrained(tmp_path, tied=True)), lora=Lora(rank=4))
    policy, prompts = build(settings, CATALOG, max_history=6, seed=1)
    return policy.eval(), prompts


def inputs(policy: Policy, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens_BP, mask_BP = prompts.encode([query.history for query in QUERIES])
    return tokens_BP, mask_BP, CATALOG.codes_NL[torch.arange(24).view(8, 3)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("arch", ["gpt2", "qwen3", "lora"])
def test_its_layers_begin_as_the_policys_and_its_values_at_zero(tmp_path: Path, arch: str, count: int) -> None:
    policy, prompts = built(tmp_path, arch)
    network, given = ValueNetwork(policy, count), inputs(policy, prompts)
    with torch.no_grad():
        assert (network(policy, *given) == 0).all() and network(policy, *given).shape == (8, 3, 3)
        own = states(_Body(policy, network), *given)  # type: ignore[arg-type]
        final = next(
            m for name, m in policy.model.base_model.named_modules() if name.split(".")[-1] in ("norm", "ln_f")
        )
        for ours, theirs in zip(own, states(policy, *given), strict=True):
            torch.testing.assert_close(final(ours), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "lora"])
def test_the_value_loss_reaches_its_own_weights_and_none_of_the_policys(tmp_path: Path, arch: str) -> None:
    policy, prompts = built(tmp_path, arch)
    network = ValueNetwork(policy, 1)
    torch.nn.init.normal_(network.head.weight)
    network(policy, *inputs(policy, prompts)).square().sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learned.values())
    assert any(name.startswith("layers.0.") for name in learned)
    shared = {id(p) for p in policy.parameters()} & {id(p) for p in network.parameters()}
    assert bool(shared) == (arch == "lora")
    assert not shared & {id(p) for p in learned.values()}


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"critic_layers=3: the policy has 2 layers.*critic=linear"):
        ValueNetwork(small_policy(CATALOG)[0], 3)


def errors(critic: str, updates: int) -> list[float]:
    """The value loss of each update on the same groups; the policy stands still."""
    policy, prompts = small_policy(CATALOG)
    options = {"objective": "ppo", "steps": updates, "group": 6, "lr": 1e-9, "value_lr": 3e-3, "warmup": 0.0}
    own = Rl.model_validate({**options, "critic": critic})
    rewards = Rewards(rank_log=0.0, prefix=0.5)
    reward = RewardFunction(rewards, RewardContext(CATALOG.codes_NL, [""] * 40), active_terms(rewards))
    learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, own, Accelerator(cpu=True))
    rollouts = LocalRollouts(policy, prompts, CATALOG.trie, own, seed=0)
    made = rollouts.collect(rollouts.submit(QUERIES, learner.snapshot()))
    return [learner.update(made)["value_loss"] for _ in range(updates)]


def test_layers_of_its_own_fit_returns_that_a_linear_head_cannot() -> None:
    linear, layers = errors("linear", 40), errors("layers", 40)
    assert linear[0] == pytest.approx(layers[0])
    assert layers[-1] < 0.75 * linear[-1] < 0.75 * linear[0]
