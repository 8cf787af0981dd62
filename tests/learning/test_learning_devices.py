"""Learning on another device than the CPU: no tensor is forgotten there, and what is learned is the same.

In a process of its own: the pretended device stays registered with PyTorch until the process ends.
"""

from support.pretended_device import output_of

ON_BOTH_DEVICES = """
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import torch
from support import pretended_device
from support.synthetic import random_catalog, small_policy
from genrec.config import Items, Loss, Rewards, Rl, Sft
from genrec.evaluation.validate import Search, Validator
from genrec.learning.checkpoints import DirectoryCheckpoints
from genrec.learning.rewards import FutureItems, RewardContext, RewardFunction, active_terms
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.rollout import LocalRollouts
from genrec.learning.sft.batches import Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.learning.sft.trainer import SftTrainer
from genrec.types import Query


class OneWorker:
    process_index, num_processes, is_main_process = 0, 1, True

    def __init__(self, device):
        self.device = torch.device(device)

    def prepare(self, *parts):
        return tuple(part.to(self.device) if isinstance(part, torch.nn.Module) else part for part in parts)

    def backward(self, loss):
        loss.backward()

    def reduce(self, values, how):
        return values

    def clip_grad_norm_(self, parameters, limit):
        return torch.nn.utils.clip_grad_norm_(list(parameters), limit, foreach=False)

    def no_sync(self, model):
        return nullcontext()


class PlainAdam(torch.optim.AdamW):  # The pretended device has no fused kernels.
    def __init__(self, groups, fused=False, **options):
        super().__init__(groups, foreach=False, **options)


def learned_by_rewards(device, items, **options):
    policy, prompts = small_policy(CATALOG, items=items)
    settings = Rl(group=6, lr=1e-3, warmup=0.0, micro_queries=3, steps=4, **options)
    rewards = Rewards(rank_log=-0.1, prefix=0.5, diversity=0.1, event=0.5, unwanted_repeat=-0.5)
    context = RewardContext(
        CATALOG.codes_NL, [f"kind {item % 3}" for item in range(40)], rewards.settings, future_items=FUTURE,
        buckets={"head": torch.arange(40) < 20},
    )
    reward = RewardFunction(rewards, context, active_terms(rewards))
    learner = GrpoLearner(policy, prompts, CATALOG.trie, reward, settings, OneWorker(device))
    rollouts = LocalRollouts(policy, prompts, CATALOG.trie.to(device), settings, seed=0)
    found = [learner.update(rollouts.collect(rollouts.submit(QUERIES, learner.snapshot()))) for _ in range(2)]
    return [found[1][name] for name in ("loss", "reward", "kl", "gradient_norm")]


def learned_from_the_log(device, items):
    policy, prompts = small_policy(CATALOG, items=items)
    weights, worker = Loss(weights=("focal", "rare"), second_pass=0.3), OneWorker(device)
    settings = Sft(epochs=2, batch_size=4, micro_batch=3, ema_decay=0.0, loss=weights, eval_every=1)
    loss = SftLoss(prompts, CATALOG, weights=weights, rare_N=torch.arange(40) < 9, device=device)
    epochs = Epochs(RowExamples(TABLE), 4, 0, weights.second_pass)
    search = Search.of(10, 6, mask_seen=True)
    validate = Validator(TABLE, prompts, CATALOG.trie, worker, count=5, search=search, batch_size=2)
    with tempfile.TemporaryDirectory() as directory:
        kept = DirectoryCheckpoints(Path(directory))
        state = SftTrainer(policy, loss, epochs, settings, seed=0, accelerator=worker, checkpoints=kept,
                           validate=validate).run()
    return [state.best_score, *(record["loss"] for record in state.curve)]


pretended_device.install()
torch.optim.AdamW = PlainAdam
CATALOG = random_catalog(40, (5, 5, 5))
QUERIES = [Query(i, i, (i, i + 1, i + 2), i + 3) for i in range(8)]
TABLE = pa.table({
    "id": list(range(12)),
    "user": list(range(12)),
    "history": pa.array([[i, i + 1] for i in range(12)], pa.list_(pa.int32())),
    "target": pa.array([i + 3 for i in range(12)], pa.int32()),
    "event": ["view"] * 12,
})
FUTURE = FutureItems(TABLE)
WITHOUT, ROWS = Items(input="none", head=False), Items(dims=8)
CASES = {
    "ppo": (learned_by_rewards, ROWS, {"objective": "ppo", "critic": "layers"}),
    "gate": (learned_by_rewards, WITHOUT, {"gate": "rank", "generation": "sample", "temperature": 1.5}),
    "hint": (learned_by_rewards, WITHOUT, {"objective": "dapo", "hint": 0.9, "ema_decay": 0.5}),
    "repaired": (learned_by_rewards, WITHOUT, {"objective": "recast"}),
    "lists": (learned_by_rewards, WITHOUT, {"generation": "slate", "slate": 3}),
    "second pass": (learned_from_the_log, ROWS, {}),
}
for name, (learn, items, options) in CASES.items():
    found, wanted = (learn(device, items, **options) for device in (pretended_device.NAME, "cpu"))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-3, atol=1e-4, msg=name)
    print(name)
"""


def test_rewards_critic_and_second_pass_forget_no_tensor_on_the_cpu() -> None:
    assert output_of(ON_BOTH_DEVICES).splitlines() == ["ppo", "gate", "hint", "repaired", "lists", "second pass"]
