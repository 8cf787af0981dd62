"""The learner of reinforcement learning: groups in, the next version of the policy and its measurements out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genrec.config import Rl
from genrec.learning.checkpoints import TrainingState
from genrec.learning.divergence import require_finite
from genrec.learning.ema import WeightAverage
from genrec.learning.rewards import RewardFunction
from genrec.learning.rl.advantages import has_advantage, level_advantages
from genrec.learning.rl.candidates import candidate_weights
from genrec.learning.rl.critic import CriticTrainer, gae, normalised
from genrec.learning.rl.diagnostics import audited, check_agreement, term_shares, zero_advantage_share
from genrec.learning.rl.difficulty import learned_by_rewards, supervised_weights, target_ranks
from genrec.learning.rl.objectives import OBJECTIVES
from genrec.learning.rl.scorer import GroupScorer, GroupScores
from genrec.learning.rl.slate_advantages import gains_of, slate_advantages
from genrec.learning.rl.update_loss import MicroBatch, Targets, UpdateLoss, informative_tokens
from genrec.learning.schedule import learning_rate
from genrec.learning.sft.strategies import gradient_norm, read_moments, write_moments
from genrec.learning.sft.trainer import parameter_groups
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.seeds import seed_of
from genrec.sid.trie import Trie
from genrec.types import Group, Snapshot


class GrpoLearner:
    """Holds the policy and its optimizer; the reference is the policy as given (the SFT policy).

    Args:
        head_weight: of the policy's item head in what is served, where the groups are of that.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        trie: Trie,
        reward: RewardFunction,
        settings: Rl,
        accelerator: Accelerator,
        *,
        head_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._head_weight, self._seed = head_weight, seed
        self._settings, self._reward, self._accelerator = settings, reward, accelerator
        self._objective = OBJECTIVES[settings.objective]
        self.policy = policy.to(accelerator.device)
        self.reference = {name: p.detach().clone() for name, p in self.policy.trainable().items()}
        optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        wrapped: Any = accelerator.prepare(policy, optimizer)
        self._wrapped, self.optimizer = wrapped
        has_critic = settings.objective == "ppo"
        self._scorer = GroupScorer(
            policy,
            prompts,
            trie,
            reference=self.reference,
            codes_NL=reward.context.codes_NL,
            all_states=has_critic and settings.critic == "linear",
            head=bool(head_weight),
        )
        self._critic = CriticTrainer(self.policy, self._scorer, settings, accelerator) if has_critic else None
        self._loss = UpdateLoss(settings, reward.context.buckets)
        self._average = WeightAverage(self.reference, settings.ema_decay) if settings.ema_decay else None
        self.version = 0
        self._first_version: int | None = None
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The policy as it stands; made once per version."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = self.policy.snapshot(self.version)
        return self._snapshot

    def ema_snapshot(self) -> Snapshot:
        """The moving average of the weights (``WeightAverage``), or the policy as it stands if ``ema_decay`` is 0."""
        return self.snapshot() if self._average is None else self._average.snapshot(self.version)

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One optimizer step on this worker's groups (averaged over workers); returns the measurements.

        Raises:
            InputError: a loss or gradient that is not finite, on every worker; the weights are as before.
        """
        settings = self._settings
        self._first_version = self.version if self._first_version is None else self._first_version
        self._reward(groups)
        zero_advantage = zero_advantage_share(*_stacked(groups))
        groups = informative_first(groups)[: max(1, len(groups) // settings.oversample)]
        self._wrapped.eval()
        torch.manual_seed(seed_of("update", self._seed, self.version, self._accelerator.process_index))
        targets = self._targets(groups)
        sums = self._backward(groups, targets if self._critic is None else self._critics_targets(groups, targets))
        own = {"reward": targets.rewards_BG.mean(), "zero_advantage_groups": zero_advantage, **self._gated(groups)}
        measured = self._means(sums, len(groups), own)
        norm = self._step(measured["loss"], [f"query {group.query.id}" for group in groups])
        staleness = self.version - groups[0].version
        self.version += 1
        shares = term_shares(groups, targets.advantage_BGL.mean(-1))
        measured |= {f"advantage_share/{name}": share for name, share in shares.items()}
        return {"step": float(self.version), **measured, "gradient_norm": norm, "staleness": float(staleness)}

    def write(self, directory: Path, run: TrainingState) -> None:
        """Save ``run``, and all that a resumed run needs of this learner."""
        tensors = {name: parameter.detach() for name, parameter in self.policy.trainable().items()}
        run.write(tensors, read_moments(self.policy, self.optimizer), directory)
        for part in (self._average, self._critic):
            if part is not None:
                part.write(directory)

    def read(self, directory: Path, run: TrainingState) -> None:
        """Restore what ``write`` saved, ``run`` too."""
        tensors, moments = run.read(directory)
        self.policy.adopt(tensors)
        write_moments(self.policy, self.optimizer, moments, run.step)
        self.version = run.step
        for part in (self._average, self._critic):
            if part is not None:
                part.read(directory)

    def _targets(self, groups: Sequence[Group]) -> Targets:
        """Rewards, weights, and the advantages of ``learning.rl.advantage``."""
        settings, (rewards_BG, _) = self._settings, _stacked(groups)
        weight_BG = candidate_weights(groups, settings.candidate_weight)
        kind = self._objective.advantage if settings.advantage == "auto" else settings.advantage
        if groups[0].slate:
            return Targets(rewards_BG, weight_BG, slate_advantages(kind, gains_of(groups), weight_BG))
        codes_BGL, sft_B = torch.stack([group.codes_GL for group in groups]), None
        if settings.gate == "rank":
            ranks_B = target_ranks(groups)
            weight_BG, sft_B = weight_BG * learned_by_rewards(ranks_B)[:, None], supervised_weights(ranks_B, settings)
        advantage_BGL = level_advantages(kind, rewards_BG, weight_BG, codes_BGL, self._total)
        if groups[0].prior_G is not None:  # One step per item, see ``served_steps``.
            advantage_BGL = advantage_BGL[..., :1]
        return Targets(rewards_BG, weight_BG, advantage_BGL, sft_B=sft_B)

    def _gated(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The shares of queries that the gate skips and that it leaves to the supervised term."""
        if self._settings.gate == "none":
            return {}
        ranks_B = target_ranks(groups)
        return {"gate/easy": (ranks_B == 1).float().mean(), "gate/missed": (ranks_B == 0).float().mean()}

    def _critics_targets(self, groups: Sequence[Group], targets: Targets) -> Targets:
        """The same with PPO's advantages and returns, by the critic as it stands before the update."""
        assert self._critic is not None
        with torch.no_grad():
            parts = [groups[part] for part in self._parts(len(groups))]
            values = [self._critic.values(part, self._scorer.scores(part)) for part in parts]
        values_BGL = torch.cat(values).cpu()
        advantage_BGL = gae(values_BGL, targets.rewards_BG, self._settings.gae_lambda)
        scaled_BGL = normalised(advantage_BGL, _stacked(groups)[1], self._total)
        return replace(targets, advantage_BGL=scaled_BGL, returns_BGL=advantage_BGL + values_BGL)

    def _backward(self, groups: Sequence[Group], targets: Targets) -> dict[str, Tensor]:
        """Gradients of the whole batch, in micro-batches; returns the measurements, summed over queries."""
        device = self._accelerator.device
        units = torch.tensor(float(len(groups)), device=device)
        if self._objective.unit == "token":
            units = self._mean_of_workers(informative_tokens(groups, targets).to(device)).clamp(min=1)
        sums: dict[str, Tensor] = {}
        for part in self._parts(len(groups)):
            batch = self._micro_batch(groups[part], targets.part(part, device))
            loss, measured = self._loss(batch, units, len(groups))
            self._accelerator.backward(loss)
            sums = {name: sums.get(name, 0) + amount.detach() for name, amount in measured.items()}
        return sums

    def _micro_batch(self, groups: Sequence[Group], targets: Targets) -> MicroBatch:
        """Scores of the groups. On the first update, of a resumed run too, they must be those of the rollouts."""
        scores = self._scorer.scores(groups, self._wrapped)
        needs_reference = bool(self._settings.kl) or self._objective.reference
        reference = self._scorer.reference_scores(groups) if needs_reference else None
        values_BGL = None if self._critic is None else self._critic.values(groups, scores)
        head_B = self._head_loss(groups, scores)
        batch = MicroBatch(groups, targets, scores, reference, values_BGL, head_B, self._head_weight)
        if self.version == self._first_version == groups[0].version:
            pairs = [(scores.logp_BGL, batch.old_BGL)]
            pairs += [(batch.policy_batch.logp_BGL, batch.policy_batch.old_BGL)] if batch.is_served else []
            for new_BGL, old_BGL in pairs:
                check_agreement(new_BGL, old_BGL, batch.items_BG >= 0, self.policy.precision)
        return batch

    def _head_loss(self, groups: Sequence[Group], scores: GroupScores) -> Tensor | None:
        """Weighted cross-entropy (B,) of the targets under the policy's item head; None where it has none."""
        head = self.policy.item_head
        if head is None:
            return None
        state_BD = scores.hidden[0][:, 0]
        target_B = torch.tensor([group.query.target for group in groups], device=state_BD.device)
        return head.loss(state_BD, target_B, scores.tokens_BP)

    def _step(self, loss: float, batch: Sequence[str]) -> float:
        """One optimizer step; returns the gradient's norm before it was clipped."""
        settings = self._settings
        remedy = f"lower learning.rl.lr={settings.lr:g} or learning.rl.clip={settings.clip:g}"
        norm = gradient_norm(self._accelerator, self._wrapped, settings.clip)
        require_finite(self.version + 1, batch, remedy, loss=loss, gradient_norm=norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.version, settings.steps, peak=settings.lr, low=settings.min_lr, warmup=settings.warmup
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.policy.trainable())
        if self._critic is not None:
            self._critic.step()
        return norm

    def _means(self, sums: Mapping[str, Tensor], queries: int, own: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the queries of all workers, of sums and of this worker's ``own`` means; credit as shares."""
        means = [*(amount / queries for amount in sums.values()), *(mean.to(sums["kl"]) for mean in own.values())]
        measured = zip((*sums, *own), self._mean_of_workers(torch.stack(means)).tolist(), strict=True)
        return audited(dict(measured))

    def _mean_of_workers(self, values: Tensor) -> Tensor:
        mean: Any = self._accelerator.reduce(values, "mean")
        return mean

    def _total(self, values: Tensor) -> Tensor:
        """The sum over all workers, where ``values`` are."""
        total: Any = self._accelerator.reduce(values.to(self._accelerator.device), "sum")
        return total.to(values.device)

    def _parts(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self._settings.micro_queries):
            yield slice(start, start + self._settings.micro_queries)


def informative_first(groups: Sequence[Group]) -> list[Group]:
    """Groups whose rewards differ, then the others, each in their order.

    Cutting this list is dynamic sampling (DAPO, Yu et al. 2025, §3.2) with a fixed number of groups.
    """
    has_B = has_advantage(*_stacked(groups)).tolist()
    return [group for wanted in (True, False) for group, has in zip(groups, has_B, strict=True) if has == wanted]


def _stacked(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Rewards of the candidates, and which are real, (B, G) each."""
    return torch.stack([group.rewards_G for group in groups]), torch.stack([group.real_G for group in groups])
