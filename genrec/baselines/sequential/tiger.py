"""TIGER (Rajput et al. 2023, 2305.05065): an encoder-decoder reads semantic IDs and writes that of the next item.

The encoder reads a token for the user, who is hashed to one of ``users``, then the codes of the newest ``history``
items, oldest first. The decoder writes the codes of the next item. As published, a row of training is a window and the
item behind it, and the loss is cross-entropy of its codes:

    -Σ_l log p(c_l | c_1 … c_{l-1}, history)

``softmax=vocabulary`` is a softmax over all tokens, as published; ``trie`` one over the codes that exist under
c_1 … c_{l-1}, so that steps without a choice cost nothing and have probability 1. Items are ranked by a beam that
follows the trie, where the published one could write IDs of no item.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from genrec.baselines.sequential.code_beam import CodeTree, beam
from genrec.baselines.sequential.network import TrainedNetwork
from genrec.baselines.sequential.training_windows import WindowBatch
from genrec.config import TigerSettings
from genrec.sid.catalog import Catalog
from genrec.sid.trie import Trie

START = 0
"""The token that the decoder begins with; the codes of level 1 follow, then those of level 2, …, then the users."""

HISTORIES = 64
"""Histories whose beams run at a time."""


class Tiger(TrainedNetwork):
    """See the module. V tokens, S of them read by the encoder."""

    form = "rows"
    tokens_NL: Tensor
    codes_NL: Tensor

    def __init__(self, catalog: Catalog, settings: TigerSettings) -> None:
        super().__init__()
        self.n_items, self.settings, self._trie = len(catalog), settings, catalog.trie
        self._beam, self._history, self._users = settings.beam, settings.history, settings.users
        self._whole_vocabulary = settings.softmax == "vocabulary"
        self._first = (1 + catalog.level_offsets()).tolist()
        self._first_user = 1 + sum(catalog.level_sizes)
        self.register_buffer("codes_NL", catalog.codes_NL, persistent=False)
        self.register_buffer("tokens_NL", catalog.codes_NL + torch.tensor(self._first), persistent=False)
        self.t5 = T5ForConditionalGeneration(_shape(self._first_user + settings.users, settings))
        self.t5.set_attn_implementation("eager")  # It adds the bias that the beam gives it, as it is.

    @property
    def trie(self) -> Trie:
        """The trie of all items, on the device of the weights."""
        if self._trie.leaf_items.device != self.codes_NL.device:
            self._trie = self._trie.to(self.codes_NL.device)
        return self._trie

    def loss(self, batch: WindowBatch) -> Tensor:
        """Cross-entropy of the codes of each window's next item, summed (scalar)."""
        target_B = batch.targets_BT.gather(1, batch.lengths_B[:, None] - 1)[:, 0]
        tokens_BS, mask_BS = self.inputs(batch.items_BT, batch.lengths_B, batch.users_B)
        written_BL = torch.nn.functional.pad(self.tokens_NL[target_B, :-1], (1, 0), value=START)
        encoded_BSD = self.encode(tokens_BS, mask_BS)
        decoder = self.t5.decoder
        hidden_BLD = decoder(
            input_ids=written_BL, encoder_hidden_states=encoded_BSD, encoder_attention_mask=mask_BS, use_cache=False
        ).last_hidden_state
        codes_BL, nodes_BL = self.codes_NL[target_B], self.trie.walk(self.codes_NL[target_B])
        total = hidden_BLD.new_zeros(())
        for level in range(codes_BL.shape[1]):
            children_BK = self.trie.step(level, nodes_BL[:, level])
            logp_BK = self.log_probabilities(level, hidden_BLD[:, level], children_BK >= 0)
            total = total - logp_BK.gather(1, codes_BL[:, level, None]).sum()
        return total

    def scores(self, items_BT: Tensor, lengths_B: Tensor, users_B: Tensor) -> Tensor:
        """Log-probabilities (B, N) of the items that the beam finds, minus infinity for the others."""
        parts = zip(*(tensor.split(HISTORIES) for tensor in (items_BT, lengths_B, users_B)), strict=True)
        return torch.cat([self._scores(*part) for part in parts])

    def _scores(self, items_BT: Tensor, lengths_B: Tensor, users_B: Tensor) -> Tensor:
        tokens_BS, mask_BS = self.inputs(items_BT, lengths_B, users_B)
        tree = CodeTree(self.t5.decoder, self.encode(tokens_BS, mask_BS), mask_BS)
        start_B = torch.full_like(lengths_B, START)
        found = beam(self, tree, start_B, self._beam)
        # An empty beam writes into a column that is cut off.
        scores_BN = found.logp_BW.new_full((len(items_BT), self.n_items + 1), -torch.inf)
        items_BW = torch.where(found.logp_BW > -torch.inf, found.items_BW, self.n_items)
        return scores_BN.scatter(1, items_BW, found.logp_BW)[:, :-1]

    def inputs(self, items_BT: Tensor, lengths_B: Tensor, users_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads, tokens (B, S) and their mask (B, S): True at real ones."""
        kept_B = lengths_B.clamp(max=self._history)
        place_H = torch.arange(int(kept_B.max()), device=items_BT.device)
        index_BH = ((lengths_B - kept_B)[:, None] + place_H).clamp(max=items_BT.shape[1] - 1)
        tokens_BS = self.tokens_NL[items_BT.gather(1, index_BH)].flatten(1)
        mask_BS = (place_H < kept_B[:, None]).repeat_interleave(self.tokens_NL.shape[1], dim=1)
        if not self._users:
            return tokens_BS, mask_BS
        user_B1 = (self._first_user + users_B % self._users)[:, None]
        return torch.cat([user_B1, tokens_BS], 1), torch.cat([users_B[:, None] >= 0, mask_BS], 1)

    def encode(self, tokens_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The encoder's states, (B, S, D)."""
        return self.t5.encoder(input_ids=tokens_BS, attention_mask=mask_BS).last_hidden_state

    def token(self, level: int, codes_x: Tensor) -> Tensor:
        """The token of each code (…,) of ``level``, (…,)."""
        return codes_x + self._first[level]

    def is_open(self, depth: int, nodes_x: Tensor) -> Tensor:
        """Whether what comes after each node (…,) of ``depth`` depends on the network, (…,) bool."""
        if self._whole_vocabulary:
            return torch.ones_like(nodes_x, dtype=torch.bool)
        return ~self.trie.has_single_leaf(depth)[nodes_x]

    def log_probabilities(self, level: int, hidden_xD: Tensor, exists_xK: Tensor) -> Tensor:
        """Of the codes of ``level`` after states (…, D), (…, K); minus infinity where ``exists_xK`` is False."""
        rows_VD, first = self.t5.shared.weight, self._first[level]
        scaled_xD = hidden_xD * rows_VD.shape[1] ** -0.5  # T5 scales what meets tied rows.
        logits_xK = scaled_xD @ rows_VD[first : first + exists_xK.shape[-1]].T
        masked_xK = logits_xK.masked_fill(~exists_xK, -torch.inf)
        if self._whole_vocabulary:
            return masked_xK - (scaled_xD @ rows_VD.T).logsumexp(-1, keepdim=True)
        return masked_xK.log_softmax(-1)


def _shape(tokens: int, settings: TigerSettings) -> T5Config:
    return T5Config(
        vocab_size=tokens,
        d_model=settings.hidden,
        d_kv=settings.head_size,
        d_ff=settings.inner,
        num_layers=settings.layers,
        num_decoder_layers=settings.layers,
        num_heads=settings.heads,
        dropout_rate=settings.dropout,
        feed_forward_proj="relu",
        pad_token_id=START,
        eos_token_id=None,
    )
