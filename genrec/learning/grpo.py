"""Group-relative policy optimisation: the learner, and the run around it with its guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from genrec.config import Grpo, Rewards
from genrec.errors import InputError
from genrec.learning.advantages import EPSILON, advantages
from genrec.learning.checkpoints import Checkpoints, TrainingState
from genrec.learning.loop import improve
from genrec.learning.objectives import clipped_surrogate, exact_kl
from genrec.learning.rewards import Knowledge, pay, term_shares
from genrec.learning.schedule import learning_rate
from genrec.learning.sft import Validate, parameter_groups
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.policy.score import Scores, score
from genrec.sid.trie import Trie
from genrec.types import Group, Query, Rollouts, Snapshot

AGREEMENT = 1e-3
"""The learner's log-probabilities of a fresh rollout may differ from the rollout's by this much (fp32; bf16: 0.2)."""


class GrpoLearner:
    """Holds the policy and its optimizer; the reference is the policy as it was handed in (the SFT policy)."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        trie: Trie,
        knowledge: Knowledge,
        settings: Grpo,
        rewards: Rewards,
        accelerator: Accelerator,
    ) -> None:
        self._settings, self._rewards, self._knowledge = settings, rewards, knowledge
        self._prompts, self._accelerator = prompts, accelerator
        self.policy = policy.to(accelerator.device)
        self._trie = trie.to(accelerator.device)
        self.reference = {name: p.detach().clone() for name, p in self.policy.trainable().items()}
        optimizer = torch.optim.AdamW(
            parameter_groups(policy, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        wrapped: Any = accelerator.prepare(policy, optimizer)
        self._wrapped, self.optimizer = wrapped
        self.version = 0
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The policy as it stands; made once per version."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = self.policy.snapshot(self.version)
        return self._snapshot

    def update(self, groups: list[Group]) -> dict[str, float]:
        """One clipped policy-gradient step on this worker's groups (averaged over workers)."""
        settings = self._settings
        pay(groups, self._knowledge, self._rewards)
        rewards_BG = torch.stack([group.rewards_G for group in groups])
        advantage_BG = advantages(settings.advantage, rewards_BG)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.version, settings.steps, peak=settings.lr, low=settings.min_lr, warmup=settings.warmup
            )
        self._wrapped.eval()
        sums = torch.zeros(4, device=self._accelerator.device)
        for start in range(0, len(groups), settings.micro_queries):
            part = slice(start, start + settings.micro_queries)
            sums += self._backward(groups[part], advantage_BG[part], len(groups))
        self._accelerator.clip_grad_norm_(self._wrapped.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        staleness = self.version - groups[0].version
        self.version += 1
        return self._measured(groups, rewards_BG, sums / len(groups)) | {"staleness": float(staleness)}

    def _backward(self, groups: Sequence[Group], advantage_BG: Tensor, total: int) -> Tensor:
        device = self._accelerator.device
        tokens_BP, mask_BP = (t.to(device) for t in self._prompts.encode([g.query.history for g in groups]))
        items_BG = torch.stack([group.items_G for group in groups]).to(device)
        codes_BGL = torch.stack([group.codes_GL for group in groups]).to(device)
        old_BGL = torch.stack([group.logp_GL for group in groups]).to(device)
        targets = [group.query.target for group in groups]
        target_B1L = self._knowledge.codes_NL[targets][:, None].to(device)
        candidates = torch.cat([codes_BGL, target_B1L], dim=1)
        arguments = (tokens_BP, mask_BP, candidates, self._trie)
        scores: Scores = self._wrapped("call", score, *arguments)
        valid_BG = items_BG >= 0
        self._check_agreement(groups, scores.logp_BGL[:, :-1], old_BGL, valid_BG)
        surrogate = clipped_surrogate(
            scores.logp_BGL[:, :-1], old_BGL, advantage_BG.to(device), valid_BG, self._settings.ratio_clip
        )
        sft = -scores.logp_BGL[:, -1].sum()
        loss = surrogate + self._settings.sft * sft
        kl = torch.zeros((), device=device)
        if self._settings.kl:
            with torch.no_grad(), self.policy.using(self.reference):
                reference = score(self.policy, *arguments)
            kl = exact_kl(scores.steps, reference.steps, torch.nn.functional.pad(valid_BG, (0, 1), value=True))
            loss = loss + self._settings.kl * kl
        self._accelerator.backward(loss / total)
        return torch.stack([loss, surrogate, kl, sft]).detach()

    def _check_agreement(self, groups: Sequence[Group], new_BGL: Tensor, old_BGL: Tensor, valid_BG: Tensor) -> None:
        """On the first update the rollouts come from these very weights: the same log-probabilities must come out."""
        if self.version > 0 or groups[0].version > 0:
            return
        gap = float((new_BGL - old_BGL).detach()[valid_BG].abs().max())
        limit = AGREEMENT if self.policy.precision == torch.float32 else 0.2
        if gap > limit:
            raise InputError(
                f"the rollouts' log-probabilities differ from the learner's by {gap:.2g} (limit {limit:g}) on the "
                "first update: the rollout actors do not run the learner's policy; both must load the same SFT output"
            )

    def _measured(self, groups: Sequence[Group], rewards_BG: Tensor, means: Tensor) -> dict[str, float]:
        device = self._accelerator.device
        dead = (rewards_BG.std(-1, correction=0) < EPSILON).float().mean()
        own = torch.stack([rewards_BG.mean(), dead]).to(device)
        both: Any = self._accelerator.reduce(torch.cat([means, own]), "mean")
        names = ("loss", "surrogate", "kl", "sft_loss", "reward", "dead_groups")
        record = {"step": float(self.version)} | dict(zip(names, both.tolist(), strict=True))
        return record | {f"share/{name}": share for name, share in term_shares(groups).items()}


class GrpoRun:
    """Improves a policy and keeps its best version by validation; the SFT policy is version 0.

    The guard: when validation NDCG@10 or HR@50 falls below the SFT policy's by more than ``guard_drop`` (relative),
    the run stops. What comes back is always the best version whose HR@50 is not below that line, be it version 0.
    """

    def __init__(
        self,
        learner: GrpoLearner,
        rollouts: Rollouts,
        queries: Callable[[int], Sequence[Query]],
        *,
        settings: Grpo,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        validate: Validate,
    ) -> None:
        self._learner, self._rollouts, self._queries = learner, rollouts, queries
        self._settings, self._accelerator = settings, accelerator
        self._checkpoints, self._validate = checkpoints, validate
        self.state = TrainingState()

    def run(self) -> TrainingState:
        """Run to the last step or until the guard stops it; resumes from the latest checkpoint."""
        self._resume()
        if self.state.stopped:
            return self.state
        started, first = time.monotonic(), self.state.step
        if not self.state.curve:
            self._check({"step": 0.0})
        steps, staleness = self._settings.steps, self._settings.max_staleness
        for record in improve(self._learner, self._rollouts, self._queries, steps=steps, max_staleness=staleness):
            self.state.step = self._learner.version
            checked = self.state.step % self._settings.eval_every == 0 or self.state.step == steps
            if checked:
                self._check(record)
            else:
                self.state.curve.append(record)
            if checked or self.state.step % 10 == 0:
                self._say(record, (time.monotonic() - started) / (self.state.step - first))
            if checked or self.state.step % self._settings.checkpoint_every == 0:
                self._save()
            if self.state.stopped:
                break
        return self.state

    def _resume(self) -> None:
        with self._checkpoints.latest() as directory:
            if directory is not None:
                self.state.read(self._learner.policy, self._learner.optimizer, directory)
                self._learner.version = self.state.step

    def _check(self, record: dict[str, float]) -> None:
        self._learner.policy.eval()
        metrics = self._validate(self._learner.policy)
        record |= metrics
        self.state.curve.append(record)
        first = self.state.curve[0]
        floor = 1 - self._settings.guard_drop
        fallen = [name for name in ("ndcg@10", "hr@50") if metrics[name] < floor * first[name]]
        if fallen:
            self.state.stopped = f"validation {fallen[0]} fell below the SFT policy's by more than the guard allows"
        elif metrics["ndcg@10"] > self.state.best_score:
            self.state.best_score = metrics["ndcg@10"]
            self.state.best = dict(self._learner.snapshot().tensors)
            self.state.best_step = self.state.step

    def _save(self) -> None:
        metrics = {"step": self.state.step, "ndcg@10": self.state.best_score}
        self._checkpoints.save(
            lambda path: self.state.write(self._learner.policy, self._learner.optimizer, path), metrics
        )

    def _say(self, record: dict[str, float], step_s: float) -> None:
        if not self._accelerator.is_main_process:
            return
        left = step_s * (self._settings.steps - self.state.step)
        names = ("reward", "dead_groups", "kl", "ndcg@10", "hr@50")
        shown = "  ".join(f"{name} {record[name]:.4f}" for name in names if name in record)
        print(f"[grpo] step {self.state.step}/{self._settings.steps}  {shown}  about {left:.0f} s left", flush=True)
