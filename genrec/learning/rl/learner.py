"""The learner of reinforcement learning: groups in, the next version of the policy out, and the audit of the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import Rewards, Rl
from genrec.errors import InputError
from genrec.learning.checkpoints import TrainingState
from genrec.learning.rewards import RewardContext, Term, active_terms, compute_rewards
from genrec.learning.rl.advantages import EPSILON, advantages
from genrec.learning.rl.critic import Critic, gae, normalised, value_loss
from genrec.learning.rl.diagnostics import level_credit, probability_shift, term_shares, zero_advantage_share
from genrec.learning.rl.objectives import OBJECTIVES, PolicyBatch, exact_entropy, exact_kl
from genrec.learning.schedule import learning_rate
from genrec.learning.sft.strategies import read_moments, write_moments
from genrec.learning.sft.trainer import parameter_groups
from genrec.policy.decoding.score import Scores, score
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie
from genrec.types import Group, Snapshot

AVERAGE = "average.safetensors"

AGREEMENT = 1e-3
"""The learner's log-probabilities of a fresh rollout may differ from the rollout's by this much (fp32; bf16: 0.2)."""


@dataclass(frozen=True)
class Targets:
    """What an update learns from: rewards (B, G), advantages (B, G, L), and PPO's returns, shaped like these."""

    rewards_BG: Tensor
    advantage_BGL: Tensor
    returns_BGL: Tensor | None

    def part(self, rows: slice, device: torch.device) -> Targets:
        """Some of the queries, on ``device``."""
        returns_BGL = None if self.returns_BGL is None else self.returns_BGL[rows].to(device)
        return Targets(self.rewards_BG[rows].to(device), self.advantage_BGL[rows].to(device), returns_BGL)


class GrpoLearner:
    """Holds the policy and its optimizer; the reference is the policy as it was handed in (the SFT policy).

    Args:
        terms: the reward terms that have a weight (``active_terms``); by default from the built-in ones.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        trie: Trie,
        context: RewardContext,
        settings: Rl,
        rewards: Rewards,
        accelerator: Accelerator,
        terms: Mapping[str, Term] | None = None,
    ) -> None:
        self._settings, self._rewards, self._knowledge = settings, rewards, context
        self._terms = active_terms(rewards, centred=settings.objective != "ppo") if terms is None else terms
        self._objective = OBJECTIVES[settings.objective]
        self._prompts, self._accelerator = prompts, accelerator
        self.policy = policy.to(accelerator.device)
        self._trie = trie.to(accelerator.device)
        self.reference = {name: p.detach().clone() for name, p in self.policy.trainable().items()}
        optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        wrapped: Any = accelerator.prepare(policy, optimizer)
        self._wrapped, self.optimizer = wrapped
        self._critic: Any = None
        if settings.objective == "ppo":
            critic = Critic(policy.model.config.hidden_size)
            self._critic, self._critic_optimizer = accelerator.prepare(
                critic, torch.optim.AdamW(critic.parameters(), lr=settings.value_lr, weight_decay=0.0)
            )
        self.version = 0
        self._began: int | None = None
        self._snapshot: Snapshot | None = None
        self._average: dict[str, Tensor] = {}
        if settings.ema_decay:
            self._average = {name: tensor.clone() for name, tensor in self.reference.items()}

    def snapshot(self) -> Snapshot:
        """The policy as it stands; made once per version."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = self.policy.snapshot(self.version)
        return self._snapshot

    def ema_snapshot(self) -> Snapshot:
        """What may be kept of this version: the running mean of the weights since the SFT policy, where there is one.

        Polyak & Juditsky 1992, with exponential weights: it does not have the noise of a high learning rate.
        """
        if not self._average:
            return self.snapshot()
        return Snapshot(self.version, {name: mean.to("cpu", copy=True) for name, mean in self._average.items()})

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One optimizer step on this worker's groups (averaged over workers), and the audit of it."""
        settings = self._settings
        self._began = self.version if self._began is None else self._began
        compute_rewards(groups, self._knowledge, self._rewards, self._terms)
        dead = zero_advantage_share(torch.stack([group.rewards_G for group in groups]))
        groups = informative_first(groups)[: max(1, len(groups) // settings.oversample)]
        rewards_BG = torch.stack([group.rewards_G for group in groups])
        kind = self._objective.advantage if settings.advantage == "auto" else settings.advantage
        advantage_BG = advantages(kind, rewards_BG)
        self._wrapped.eval()
        sums = self._backward_all(groups, self._targets(groups, rewards_BG, advantage_BG))
        self._step()
        measured = self._measured(sums, len(groups), {"reward": rewards_BG.mean(), "zero_advantage_groups": dead})
        staleness = self.version - groups[0].version
        self.version += 1
        shares = {f"advantage_share/{name}": share for name, share in term_shares(groups, advantage_BG).items()}
        return {"step": float(self.version), **measured, **shares, "staleness": float(staleness)}

    def write(self, directory: Path, run: TrainingState) -> None:
        """Save ``run``, and all that a resumed run needs of this learner."""
        tensors = {name: parameter.detach() for name, parameter in self.policy.trainable().items()}
        run.write(tensors, read_moments(self.policy, self.optimizer), directory)
        if self._average:
            save_file({name: mean.contiguous() for name, mean in self._average.items()}, directory / AVERAGE)
        if self._critic is not None:
            state = {"critic": self._critic.state_dict(), "optimizer": self._critic_optimizer.state_dict()}
            torch.save(state, directory / "critic.pt")

    def read(self, directory: Path, run: TrainingState) -> None:
        """Restore what ``write`` saved, ``run`` too."""
        tensors, moments = run.read(directory)
        self.policy.adopt(tensors)
        write_moments(self.policy, self.optimizer, moments, run.step)
        self.version = run.step
        if self._average:
            saved = load_file(directory / AVERAGE)
            self._average = {name: saved[name].to(mean.device) for name, mean in self._average.items()}
        if self._critic is not None:
            state = torch.load(directory / "critic.pt", weights_only=True, map_location=self.policy.device)
            self._critic.load_state_dict(state["critic"])
            self._critic_optimizer.load_state_dict(state["optimizer"])

    def _targets(self, groups: Sequence[Group], rewards_BG: Tensor, advantage_BG: Tensor) -> Targets:
        """The group's advantage at every level, or those of the value head as it stands before the update."""
        if self._critic is None:
            levels = groups[0].codes_GL.shape[1]
            return Targets(rewards_BG, advantage_BG[..., None].expand(-1, -1, levels), None)
        with torch.no_grad():
            values = [self._values(self._score(groups[part], self.policy)) for part in self._parts(len(groups))]
        values_BGL = torch.cat(values).cpu()
        advantage_BGL = gae(values_BGL, rewards_BG, self._settings.gae_lambda)
        valid_BG = torch.stack([group.items_G for group in groups]) >= 0
        return Targets(rewards_BG, normalised(advantage_BGL, valid_BG), advantage_BGL + values_BGL)

    def _backward_all(self, groups: Sequence[Group], signal: Targets) -> dict[str, Tensor]:
        """Gradients of the whole batch, in micro-batches; returns what was measured, summed over queries."""
        device = self._accelerator.device
        units = torch.tensor(float(len(groups)), device=device)
        if self._objective.unit == "token":
            units = self._mean_of_workers(_informative_tokens(groups, signal).to(device)).clamp(min=1)
        sums: dict[str, Tensor] = {}
        for part in self._parts(len(groups)):
            found = self._backward(groups[part], signal.part(part, device), units, len(groups))
            sums = {name: sums.get(name, 0) + amount.detach() for name, amount in found.items()}
        return sums

    def _backward(self, groups: Sequence[Group], signal: Targets, units: Tensor, total: int) -> dict[str, Tensor]:
        settings, device = self._settings, self._accelerator.device
        scores = self._score(groups, self._wrapped)
        reference = self._reference(groups)
        items_BG = torch.stack([group.items_G for group in groups]).to(device)
        old_BGL = torch.stack([group.logp_GL for group in groups]).to(device)
        logp_BGL, valid_BG = scores.logp_BGL[:, :-1], items_BG >= 0
        self._check_agreement(groups, logp_BGL, old_BGL, valid_BG)
        theirs_BGL = None if reference is None else reference.logp_BGL[:, :-1]
        weight_BG = _weights(groups).to(device) * valid_BG
        batch = PolicyBatch(logp_BGL, old_BGL, theirs_BGL, signal.advantage_BGL, signal.rewards_BG, weight_BG)
        surrogate = self._objective.loss(batch, settings)
        sft = -scores.logp_BGL[:, -1].sum()
        visited_BG = F.pad(valid_BG, (0, 1), value=True)
        entropy_L = exact_entropy(scores.steps, visited_BG)
        loss = surrogate / units + (settings.sft * sft - settings.entropy * entropy_L.sum()) / total
        found = {"surrogate": surrogate * total / units, "sft_loss": sft, "entropy": entropy_L.sum()}
        kl_L = torch.zeros_like(entropy_L)
        if reference is not None:
            kl_L = exact_kl(scores.steps, reference.steps, visited_BG)
            loss = loss + settings.kl * kl_L.sum() / total
            moved = probability_shift(logp_BGL, reference.logp_BGL[:, :-1], items_BG, self._knowledge.buckets)
            found |= {f"prob_shift/{name}": amount for name, amount in moved.items()}
        if signal.returns_BGL is not None:
            found["value_loss"] = value_loss(self._values(scores), signal.returns_BGL, valid_BG)
            loss = loss + settings.value_weight * found["value_loss"] / total
        self._accelerator.backward(loss)
        credit_L = level_credit(logp_BGL, signal.advantage_BGL, valid_BG)
        levels = {"kl": kl_L, "credit": credit_L}
        found |= {f"{name}/{n}": at for name, at_L in levels.items() for n, at in enumerate(at_L, start=1)}
        return found | {"loss": loss * total, "kl": kl_L.sum()}

    def _score(self, groups: Sequence[Group], policy: Any) -> Scores:
        """Scores of the candidates and, as one more, of the target; with all the states where a critic reads them."""
        device = self._accelerator.device
        tokens_BP, mask_BP = (t.to(device) for t in self._prompts.encode([g.query.history for g in groups]))
        codes_BGL = torch.stack([group.codes_GL for group in groups])
        target_B1L = self._knowledge.codes_NL[[group.query.target for group in groups]][:, None]
        candidates = torch.cat([codes_BGL, target_B1L], dim=1).to(device)
        return policy("call", score, tokens_BP, mask_BP, candidates, self._trie, self._critic is not None)

    def _reference(self, groups: Sequence[Group]) -> Scores | None:
        """Scores under the SFT policy, where the settings have a use for them."""
        if not self._settings.kl and not self._objective.reference:
            return None
        with torch.no_grad(), self.policy.using(self.reference):
            return self._score(groups, self.policy)

    def _values(self, scores: Scores) -> Tensor:
        """The critic's (B, G, L), without those of the target."""
        return self._critic(scores.hidden, scores.logp_BGL.shape[1])[:, :-1]

    def _step(self) -> None:
        settings = self._settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.version, settings.steps, peak=settings.lr, low=settings.min_lr, warmup=settings.warmup
            )
        self._accelerator.clip_grad_norm_(self._wrapped.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        own = self.policy.trainable()
        for name, mean in self._average.items():
            mean.lerp_(own[name].detach(), 1 - settings.ema_decay)
        if self._critic is not None:
            self._critic_optimizer.step()
            self._critic_optimizer.zero_grad(set_to_none=True)

    def _check_agreement(self, groups: Sequence[Group], new_BGL: Tensor, old_BGL: Tensor, valid_BG: Tensor) -> None:
        """On the first update, of a resumed run too, the rollouts come from these very weights.

        The same log-probabilities must come out.
        """
        if self.version != self._began or groups[0].version != self.version or not bool(valid_BG.any()):
            return
        gap = float((new_BGL - old_BGL).detach()[valid_BG].abs().max())
        limit = AGREEMENT if self.policy.precision == torch.float32 else 0.2
        if not gap <= limit:
            raise InputError(
                f"the rollouts' log-probabilities differ from the learner's by {gap:.2g} (limit {limit:g}) on the "
                "first update: the rollout actors do not run the learner's policy; both must load the same SFT output"
            )

    def _measured(self, sums: Mapping[str, Tensor], total: int, own: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the queries of all workers; credit as each level's share."""
        values = torch.stack([*(amount / total for amount in sums.values()), *(v.to(sums["kl"]) for v in own.values())])
        found = dict(zip((*sums, *own), self._mean_of_workers(values).tolist(), strict=True))
        credit = sum(value for name, value in found.items() if name.startswith("level_credit/"))
        return {n: v / max(credit, EPSILON) if n.startswith("level_credit/") else v for n, v in found.items()}

    def _mean_of_workers(self, values: Tensor) -> Tensor:
        both: Any = self._accelerator.reduce(values, "mean")
        return both

    def _parts(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self._settings.micro_queries):
            yield slice(start, start + self._settings.micro_queries)


def informative_first(groups: Sequence[Group]) -> list[Group]:
    """Groups whose rewards differ, then the others, each in their order.

    Cutting this list is dynamic sampling (DAPO, Yu et al. 2025, §3.2) whose number of groups never varies.
    """
    return sorted(groups, key=lambda group: bool(group.rewards_G.std(correction=0) < EPSILON))


def _informative_tokens(groups: Sequence[Group], signal: Targets) -> Tensor:
    valid_BG = torch.stack([group.items_G for group in groups]) >= 0
    informative_B = (signal.advantage_BGL != 0).any(-1).any(-1)
    return (valid_BG & informative_B[:, None]).sum().float() * signal.advantage_BGL.shape[-1]


def _weights(groups: Sequence[Group]) -> Tensor:
    """Importance weights (B, G); 1 where the groups carry none."""
    return torch.stack([torch.ones(len(g.items_G)) if g.weights_G is None else g.weights_G for g in groups])
