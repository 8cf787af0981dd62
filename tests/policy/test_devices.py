"""Decoding, scoring and the loss on another device than the CPU: no tensor is forgotten, and the answers are the same.

Each runs in a process of its own: the pretended device stays registered with PyTorch until the process ends.
"""

from support.pretended_device import output_of

ON_BOTH_DEVICES = """
import torch
from support import pretended_device
from support.synthetic import random_catalog, small_policy
from genrec.learning.sft.batches import Rows
from genrec.learning.sft.losses import SftLoss
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.score import score

def answers(device):
    inputs = [part.to(device) for part in prompts.encode(histories)]
    trie = catalog.trie.to(device)
    beams = beam(policy, *inputs, trie, 7)
    scores = score(policy, *inputs, catalog.codes_NL[None, :5].expand(3, -1, -1).to(device), trie)
    loss = SftLoss(prompts, catalog, device=device)(policy, Rows(histories, torch.tensor([1, 2, 3])))
    (loss + scores.logp_BGL.sum()).backward()
    gradient = sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None)
    policy.zero_grad()
    return [beams.items_BW.tolist(), scores.logp_BGL.tolist(), float(loss), gradient]

pretended_device.install()
catalog = random_catalog(30, (4, 5, 6))
histories = [[1, 2, 3], [4], [5, 6]]
for arch in ("gpt2", "qwen3"):
    policy, prompts = small_policy(catalog, arch)
    expected = answers("cpu")
    policy.to(pretended_device.NAME)
    assert policy.device.type == pretended_device.NAME
    for found, wanted in zip(answers(pretended_device.NAME), expected, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))
try:
    torch.ones(2, device=pretended_device.NAME) + torch.ones(2)
except RuntimeError as error:
    print("mixed devices:", error)
"""


def test_decoding_scoring_and_the_loss_forget_no_tensor_on_the_cpu() -> None:
    assert "mixed devices: aten::add: tensors on pretended and on cpu" in output_of(ON_BOTH_DEVICES)
