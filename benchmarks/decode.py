"""Tree decoding beside Hugging Face ``generate`` and the public design, and shared scoring beside separate sequences.

Everything takes turns in one run, on the same model and inputs; what the alternatives answer is compared token by
token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Bench, interleaved_timings, random_catalog, ratio, timed
from genrec.config import Config, PolicyConfig

if TYPE_CHECKING:
    from genrec.sid.catalog import Catalog

MILLION = 1_000_000


@dataclass(frozen=True)
class DecodeSize:
    """What is measured: the model, prompts of ``1 + 3 * history`` tokens, and how they are searched."""

    layers: int = 6
    hidden: int = 256
    heads: int = 8
    items: int = 3686
    many_items: int = MILLION
    histories: tuple[int, ...] = (21, 42)
    batch: int = 16
    widths: tuple[int, ...] = (20,)
    group: int = 16
    vocabularies: tuple[tuple[str, int], ...] = (("v800", 0), ("v152k", 152_000))
    """Tokens of the model by name, ascending; 0: the semantic IDs and no others."""
    rounds: int = 5


ON_GPU = DecodeSize(layers=28, hidden=2048, heads=16, histories=(333,), widths=(50, 256), batch=4)
"""The shapes of Qwen3-1.7B, prompts of 1,000 tokens."""


def run(config: Config, size: DecodeSize | None = None) -> Bench:
    """On a CPU a 6-layer hidden-256 Qwen3 on 3,686 items, 64 and 127 tokens; on a GPU ``ON_GPU`` in bfloat16."""
    import torch

    torch.set_num_threads(config.compute.threads)
    on_gpu = torch.cuda.is_available() and config.compute.device != "cpu"
    size = size or (ON_GPU if on_gpu else DecodeSize())
    bench = Bench("decode")
    for history in size.histories:
        for width in size.widths:
            made = _DecodeSetup(config, size, history, width, "cuda" if on_gpu else "cpu")
            if history != size.histories[0] or len(size.widths) > 1:
                made.name = f"_p{made.length}_w{width}"
            _beside_generate(made, bench)
            _catalogue_and_memory(made, bench)
            if width == size.widths[0]:
                _scoring(made, bench)
                _prompt_cache(made, bench)
    return bench


class _DecodeSetup:
    """A policy of random weights, a batch of prompts, and what the names of their figures end in."""

    def __init__(self, config: Config, size: DecodeSize, history: int, width: int, device: str) -> None:
        import torch

        from genrec.policy.backbone import build

        self.size, self.width = size, width
        self.generator = torch.Generator().manual_seed(config.seed)
        self.catalog = random_catalog(size.items, self.generator)
        self.trie = self.catalog.trie.to(device)
        dtype = "float32" if device == "cpu" else "bfloat16"
        shape = PolicyConfig(
            arch="qwen3", hidden=size.hidden, layers=size.layers, heads=size.heads, dropout=0.0, dtype=dtype
        )
        self.policy, self.prompts = build(shape, self.catalog, max_history=history, seed=config.seed)
        self.policy.eval().to(device)
        shape_BH = (size.batch, history)
        self.histories: Any = torch.randint(size.items, shape_BH, generator=self.generator).tolist()
        self.tokens_BP, self.mask_BP = (part.to(device) for part in self.prompts.encode(self.histories))
        self.length = self.tokens_BP.shape[1]
        self.name = ""

    def beam(self, trie: Any = None) -> Any:
        """The answers of tree decoding."""
        from genrec.policy.decoding.beam import beam

        return beam(self.policy, self.tokens_BP, self.mask_BP, self.trie if trie is None else trie, self.width)

    def prompt(self) -> None:
        """The prompt alone: what no decoder can do without."""
        import torch

        from genrec.policy.decoding.tree import prompt_mask, prompt_positions

        with torch.no_grad():
            self.policy.hidden(self.tokens_BP, prompt_positions(self.mask_BP), prompt_mask(self.mask_BP))


def _beside_generate(made: _DecodeSetup, bench: Bench) -> None:
    """Tree decoding, ``generate`` and the public design at each vocabulary; and beside the prompt's own forward."""
    rounds, bound = made.size.rounds, (made.length + 2 * made.width) / made.length
    arguments = (made.policy, made.tokens_BP, made.mask_BP, made.catalog, made.width)
    decoders = {"generate": generate, "python_dict": generate_with_processor}
    for vocabulary, tokens in made.size.vocabularies:
        if tokens:
            made.policy.model.resize_token_embeddings(tokens, mean_resizing=False)
        name = f"{vocabulary}{made.name}"
        ours = made.policy.sids.tokens(made.beam().codes_BWL)
        for other, decode in decoders.items():
            same = float((decode(*arguments) == ours).float().mean())
            bench.figures[f"same_tokens_as_{other}_{name}"] = same
        work: dict[str, Callable[[], Any]] = {"tree": made.beam, "prompt": made.prompt}
        work |= {other: partial(decode, *arguments) for other, decode in decoders.items()}
        seconds = interleaved_timings(work, rounds)
        bench.figures |= {f"{what}_s_{name}": statistics.median(values) for what, values in seconds.items()}
        bench.ratios |= {f"vs_{other}_{name}": ratio(seconds[other], seconds["tree"]) for other in decoders}
        bench.ratios[f"over_flop_bound_{name}"] = ratio(seconds["tree"], seconds["prompt"]) / bound


def _catalogue_and_memory(made: _DecodeSetup, bench: Bench) -> None:
    """A far larger catalogue beside this one, and the keys and values of a search beside their bound.

    A search does less where the first codes of a SID leave one item. The small catalogue is therefore measured as it
    is, and ``crowded``: as many items whose prefixes branch to the end, as those of the large one do.
    """
    device = made.policy.device
    many = random_catalog(made.size.many_items, made.generator).trie.to(device)
    crowded = _crowded_catalog(made.size.items).trie.to(device)
    work = {"few": made.beam, "crowded": lambda: made.beam(crowded), "many": lambda: made.beam(many)}
    seconds = interleaved_timings(work, 2 * made.size.rounds + 1)
    bench.ratios[f"catalogue_1m_over_4k{made.name}"] = ratio(seconds["many"], seconds["crowded"])
    bench.ratios[f"crowded_over_sparse{made.name}"] = ratio(seconds["crowded"], seconds["few"])
    caches: list[Any] = []
    new_cache = made.policy.new_cache

    def kept() -> Any:
        caches.append(new_cache())
        return caches[-1]

    made.policy.new_cache = kept
    made.beam()
    made.policy.new_cache = new_cache
    used = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[0].layers)
    first = caches[0].layers[0]
    per_token = (first.keys.nbytes + first.values.nbytes) // first.keys.shape[2] * len(caches[0].layers)
    bench.ratios[f"kv_over_bound{made.name}"] = used / (per_token * (made.length + made.width * made.trie.depth))


def _crowded_catalog(items: int) -> Catalog:
    """``items`` SIDs of 3 × 256 codes that use the fewest codes per level."""
    import torch

    from genrec.sid.catalog import Catalog

    side = next(n for n in range(1, 257) if n**3 >= items)
    flat = torch.arange(items)
    return Catalog(torch.stack([flat // side**2, flat // side % side, flat % side], 1), (256, 256, 256))


def _scoring(made: _DecodeSetup, bench: Bench) -> None:
    """Forward and backward over G candidates that share their prompt, beside G sequences."""
    import torch

    from genrec.policy.decoding.score import score

    policy, group = made.policy, made.size.group
    drawn_BG = torch.randint(made.size.items, (made.size.batch, group), generator=made.generator)
    candidates_BGL = made.catalog.codes_NL[drawn_BG].to(made.tokens_BP.device)

    def shared() -> None:
        policy.zero_grad()
        score(policy, made.tokens_BP, made.mask_BP, candidates_BGL, made.trie).logp_BGL.sum().backward()

    def separate() -> None:
        policy.zero_grad()
        tokens, mask = made.tokens_BP.repeat_interleave(group, 0), made.mask_BP.repeat_interleave(group, 0)
        score(policy, tokens, mask, candidates_BGL.flatten(0, 1)[:, None], made.trie).logp_BGL.sum().backward()

    seconds = interleaved_timings({"shared": shared, "separate": separate}, made.size.rounds)
    policy.zero_grad()
    bench.figures |= {f"score_{what}_s{made.name}": statistics.median(values) for what, values in seconds.items()}
    bench.ratios[f"score_vs_separate{made.name}"] = ratio(seconds["separate"], seconds["shared"])


def _prompt_cache(made: _DecodeSetup, bench: Bench) -> None:
    """Requests of users whose history grew by one item since their last one, beside the same without a cache."""
    from genrec.policy.decoding.beam import beam
    from genrec.policy.decoding.prompt_cache import PromptCache

    def ask(histories: Sequence[Any], cache: PromptCache | None) -> None:
        for history in histories:
            tokens_BP, mask_BP = (part.to(made.tokens_BP.device) for part in made.prompts.encode([history]))
            beam(made.policy, tokens_BP, mask_BP, made.trie, made.width, prompt_cache=cache)

    found: dict[str, list[float]] = {"whole": [], "cached": []}
    for _ in range(made.size.rounds + 1):
        cache = PromptCache(made.policy, 2**32)
        ask([history[:-1] for history in made.histories], cache)
        found["whole"].append(timed(lambda: ask(made.histories, None)))
        found["cached"].append(timed(lambda known=cache: ask(made.histories, known)))
    bench.ratios[f"prompt_cache{made.name}"] = ratio(found["whole"][1:], found["cached"][1:])


def generate(policy: Any, tokens_BP: Any, mask_BP: Any, catalog: Any, width: int) -> Any:
    """Tokens (B, W, L) of ``generate`` under a Python prefix table, which is how public training code decodes."""
    prompt, children = tokens_BP.shape[1], _children(policy, catalog)
    allowed: Any = {
        "prefix_allowed_tokens_fn": lambda _, ids: children.get(tuple(ids[prompt:].tolist()), [0]),
        "renormalize_logits": True,
    }
    return _generate(policy, tokens_BP, mask_BP, catalog.levels, width, **allowed)


def generate_with_processor(policy: Any, tokens_BP: Any, mask_BP: Any, catalog: Any, width: int) -> Any:
    """The same by a logits processor that looks each beam up in a Python dict (MiniOneRec's design)."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    prompt, children = tokens_BP.shape[1], _children(policy, catalog)

    class Constrained(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.log_softmax(-1)
            mask = torch.full_like(scores, -torch.inf)
            for beam, ids in enumerate(input_ids[:, prompt:]):
                mask[beam, children.get(tuple(ids.tolist()), [0])] = 0.0
            return (scores + mask).log_softmax(-1)

    processors = LogitsProcessorList([Constrained()])
    return _generate(policy, tokens_BP, mask_BP, catalog.levels, width, logits_processor=processors)


def _children(policy: Any, catalog: Any) -> dict[tuple[int, ...], list[int]]:
    children: dict[tuple[int, ...], list[int]] = {}
    for codes in sorted(policy.sids.tokens(catalog.codes_NL).tolist()):
        for level in range(catalog.levels):
            known = children.setdefault(tuple(codes[:level]), [])
            if not known or known[-1] != codes[level]:
                known.append(codes[level])
    return children


def _generate(policy: Any, tokens_BP: Any, mask_BP: Any, levels: int, width: int, **options: Any) -> Any:
    out = policy.model.generate(
        input_ids=tokens_BP,
        attention_mask=mask_BP.long(),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=levels,
        min_new_tokens=levels,
        do_sample=False,
        length_penalty=0.0,
        **options,
    )
    return out[:, tokens_BP.shape[1] :].view(len(tokens_BP), width, levels)
