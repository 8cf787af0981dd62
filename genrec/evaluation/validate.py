"""Quick validation inside training: a fixed sample of the validation queries, on the decoder that serves."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from genrec.policy.decode import beam
from genrec.policy.model import Policy
from genrec.policy.prompts import Prompts
from genrec.sid.trie import Trie


class Validator:
    """HR@10, HR@50 and NDCG@10 of a policy on ``count`` validation queries (item level, beam search).

    The queries are split over the workers of ``accelerator`` and the sums are reduced, so every worker gets the
    metrics of all of them.
    """

    def __init__(
        self,
        queries: pa.Table,
        prompts: Prompts,
        trie: Trie,
        accelerator: Accelerator,
        *,
        count: int,
        width: int,
        batch_size: int,
    ) -> None:
        chosen = np.random.default_rng(0).permutation(queries.num_rows)[:count]
        own = np.sort(chosen)[accelerator.process_index :: accelerator.num_processes]
        sample = queries.take(own)
        self._histories: list[list[int]] = sample["history"].to_pylist()
        self._targets = torch.tensor(sample["target"].to_pylist(), dtype=torch.long)
        self._prompts, self._accelerator = prompts, accelerator
        self._trie = trie.to(accelerator.device)
        self._width, self._batch = width, batch_size

    def __call__(self, policy: Policy) -> dict[str, float]:
        """The metrics; ``policy`` must be in evaluation mode."""
        sums = torch.zeros(4, device=self._accelerator.device)
        for start in range(0, len(self._histories), self._batch):
            part = slice(start, start + self._batch)
            tokens_BP, mask_BP = (t.to(policy.device) for t in self._prompts.encode(self._histories[part]))
            items_BW = beam(policy, tokens_BP, mask_BP, self._trie, self._width).items_BW
            hits_BW = (items_BW == self._targets[part, None].to(policy.device)).float()
            gains_W = 1 / torch.arange(2, hits_BW.shape[1] + 2, device=policy.device).log2()
            ndcg = (hits_BW * gains_W)[:, :10].sum()
            sums += torch.stack(
                [sums.new_tensor(float(len(hits_BW))), hits_BW[:, :10].sum(), hits_BW[:, :50].sum(), ndcg]
            )
        total: torch.Tensor = self._accelerator.reduce(sums, "sum")  # pyright: ignore[reportAssignmentType]
        count, hr10, hr50, ndcg10 = total.tolist()
        found = {"hr@10": hr10 / count, "ndcg@10": ndcg10 / count}
        return found | ({"hr@50": hr50 / count} if self._width >= 50 else {})
