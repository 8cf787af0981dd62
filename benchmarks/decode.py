"""Tree decoding compared with Hugging Face ``generate`` and with a Python trie; shared and separate scoring.

All alternatives take turns in one run, on the same model and inputs; their answers are compared token by token.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness import WITHOUT_ROWS, Bench, interleaved_timings, random_catalog, ratio, timed
from cluster.artifacts import Artifact
from genrec.config import Config, Items, PolicyConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

    from genrec.policy.decoding.beam import Beams
    from genrec.policy.decoding.prompt_cache import PromptCache
    from genrec.sid.catalog import Catalog
    from genrec.sid.trie import Trie

NEEDS: tuple[str, ...] = ()
Tell = Callable[[Bench], None]
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
    """Tokens of the model by name, ascending; 0: the semantic IDs alone."""
    rounds: int = 5
    searches_only: bool = False
    """Leave out scoring, the prompt cache and the item head, which take more memory."""


ON_GPU = DecodeSize(layers=28, hidden=2048, heads=16, histories=(333,), widths=(50, 256), batch=4)
"""Width and depth of Qwen3-1.7B, with every head's own keys and values; prompts of 1,000 tokens."""


def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
    """On a CPU a 6-layer hidden-256 Qwen3 on 3,686 items, 64 and 127 tokens; on a GPU ``ON_GPU`` in bfloat16."""
    import torch

    on_gpu = torch.cuda.is_available() and config.compute.device != "cpu"
    return measure(config, ON_GPU if on_gpu else DecodeSize(), "cuda" if on_gpu else "cpu")


def measure(config: Config, size: DecodeSize, device: str = "cpu", tell: Tell = lambda bench: None) -> Bench:
    """Every comparison, for each prompt length and each number of beams of ``size``.

    Args:
        tell: told of what is known so far, first of the search alone: the references may take too long.
    """
    import torch

    torch.set_num_threads(config.compute.threads)
    bench = Bench("decode")
    for history in size.histories:
        for place, width in enumerate(size.widths):
            setup = _DecodeSetup(config, size, history, width, device)
            if history != size.histories[0] or len(size.widths) > 1:
                setup.suffix = f"_p{setup.length}_w{width}"
            _compare_with_generate(setup, bench, tell)
            tell(bench)
            _catalogue_and_memory(setup, bench)
            if place == 0 and not size.searches_only:
                _scoring(setup, bench)
                _prompt_cache(setup, bench)
                _item_head(setup, bench)
    return bench


class _DecodeSetup:
    """A policy of random weights, a batch of prompts, and the ``suffix`` of the names of their figures."""

    def __init__(self, config: Config, size: DecodeSize, history: int, width: int, device: str) -> None:
        import torch

        from genrec.policy.backbone import build

        self.size, self.width, self.suffix = size, width, ""
        self.generator = torch.Generator().manual_seed(config.seed)
        self.catalog = random_catalog(size.items, self.generator)
        self.trie = self.catalog.trie.to(device)
        dtype = "float32" if device == "cpu" else "bfloat16"
        self.shape = PolicyConfig(
            arch="qwen3",
            hidden=size.hidden,
            layers=size.layers,
            heads=size.heads,
            dropout=0.0,
            dtype=dtype,
            items=WITHOUT_ROWS,
        )
        self.policy, self.prompts = build(self.shape, self.catalog, max_history=history, seed=config.seed)
        self.policy.eval().to(device)
        shape_BH = (size.batch, history)
        self.histories: list[list[int]] = torch.randint(size.items, shape_BH, generator=self.generator).tolist()
        self.tokens_BP, self.mask_BP = (part.to(device) for part in self.prompts.encode(self.histories))
        self.length = self.tokens_BP.shape[1]

    def beam(self, trie: Trie | None = None) -> Beams:
        """The answers of tree decoding, in another ``trie`` where there is one."""
        from genrec.policy.decoding.beam import beam

        return beam(self.policy, self.tokens_BP, self.mask_BP, self.trie if trie is None else trie, self.width)

    def prompt(self) -> None:
        """The forward over the prompt alone, which every decoder needs."""
        import torch

        from genrec.policy.decoding.tree import prompt_mask, prompt_positions

        with torch.no_grad():
            self.policy.hidden(self.tokens_BP, prompt_positions(self.mask_BP), prompt_mask(self.mask_BP))


def _compare_with_generate(setup: _DecodeSetup, bench: Bench, tell: Tell) -> None:
    """Tree decoding, ``generate``, the Python trie and the prompt's forward alone, at each vocabulary.

    A reference that finds no room on a GPU is left out, and ``no_room_for_…`` is 1.

    over_flop_bound = (seconds of tree decoding / seconds of the prompt) / ((P + 2·W) / P)
    """
    from benchmarks.references.hf_generate import generate, generate_with_processor

    rounds, bound = setup.size.rounds, (setup.length + 2 * setup.width) / setup.length
    arguments = (setup.policy, setup.tokens_BP, setup.mask_BP, setup.catalog, setup.width)
    references = {"generate": generate, "python_dict": generate_with_processor}
    for vocabulary, tokens in setup.size.vocabularies:
        if tokens:
            setup.policy.model.resize_token_embeddings(tokens, mean_resizing=False)
        name = f"{vocabulary}{setup.suffix}"
        tokens_BWL = setup.policy.sids.tokens(setup.beam().codes_BWL)
        work: dict[str, Callable[[], object]] = {"tree": setup.beam, "prompt": setup.prompt}
        seconds = interleaved_timings(work, rounds)
        bench.figures |= {f"{label}_s_{name}": statistics.median(values) for label, values in seconds.items()}
        tell(bench)
        for reference, decode in references.items():
            found = _answer_if_room(partial(decode, *arguments))
            if found is None:
                bench.figures[f"no_room_for_{reference}_{name}"] = 1.0
                continue
            bench.figures[f"same_tokens_as_{reference}_{name}"] = float((found == tokens_BWL).float().mean())
            work[reference] = partial(decode, *arguments)
        seconds = interleaved_timings(work, rounds)
        bench.figures |= {f"{label}_s_{name}": statistics.median(values) for label, values in seconds.items()}
        bench.ratios |= {
            f"vs_{reference}_{name}": ratio(seconds[reference], seconds["tree"])
            for reference in references
            if reference in work
        }
        bench.ratios[f"over_flop_bound_{name}"] = ratio(seconds["tree"], seconds["prompt"]) / bound


def _answer_if_room(decode: Callable[[], Tensor]) -> Tensor | None:
    """What ``decode`` finds; None where the GPU's memory does not suffice, all of which is free again then."""
    import torch

    with suppress(torch.OutOfMemoryError):
        return decode()
    torch.cuda.empty_cache()
    return None


def _catalogue_and_memory(setup: _DecodeSetup, bench: Bench) -> None:
    """A far larger catalogue compared with this one, and the keys and values of a search with their lower bound.

    A search computes less where the first codes of a SID leave one item. So the small catalogue is measured as it is,
    and ``crowded``: the same number of items, whose prefixes branch down to the last level as in the large catalogue.

    kv_over_bound = bytes of keys and values / (bytes per token · (P + W·L))
    """
    device = setup.policy.device
    many = random_catalog(setup.size.many_items, setup.generator).trie.to(device)
    crowded = _crowded_catalog(setup.size.items).trie.to(device)
    work: dict[str, Callable[[], object]] = {
        "few": setup.beam,
        "crowded": lambda: setup.beam(crowded),
        "many": lambda: setup.beam(many),
    }
    seconds = interleaved_timings(work, 2 * setup.size.rounds + 1)
    bench.ratios[f"catalogue_1m_over_4k{setup.suffix}"] = ratio(seconds["many"], seconds["crowded"])
    bench.ratios[f"crowded_over_sparse{setup.suffix}"] = ratio(seconds["crowded"], seconds["few"])
    cache = _cache_of(setup)
    used = _kv_bytes(cache)
    first = cache.layers[0]
    per_token = (first.keys.nbytes + first.values.nbytes) // first.keys.shape[2] * len(cache.layers)
    bench.ratios[f"kv_over_bound{setup.suffix}"] = used / (per_token * (setup.length + setup.width * setup.trie.depth))


def _cache_of(setup: _DecodeSetup) -> Any:
    """The KV cache of one search (transformers types its layers' tensors as optional)."""
    caches: list[DynamicCache] = []
    new_cache = setup.policy.new_cache

    def kept() -> DynamicCache:
        caches.append(new_cache())
        return caches[-1]

    setup.policy.new_cache = kept
    setup.beam()
    setup.policy.new_cache = new_cache
    return caches[0]


def _kv_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _crowded_catalog(items: int) -> Catalog:
    """``items`` SIDs of 3 × 256 codes that use the fewest codes per level."""
    import torch

    from genrec.sid.catalog import Catalog

    side = next(n for n in range(1, 257) if n**3 >= items)
    flat = torch.arange(items)
    return Catalog(torch.stack([flat // side**2, flat // side % side, flat % side], 1), (256, 256, 256))


def _scoring(setup: _DecodeSetup, bench: Bench) -> None:
    """Forward and backward over G candidates that share their prompt, compared with G separate sequences."""
    import torch

    from genrec.policy.decoding.score import score

    policy, group = setup.policy, setup.size.group
    drawn_BG = torch.randint(setup.size.items, (setup.size.batch, group), generator=setup.generator)
    candidates_BGL = setup.catalog.codes_NL[drawn_BG].to(setup.tokens_BP.device)

    def shared() -> None:
        policy.zero_grad()
        score(policy, setup.tokens_BP, setup.mask_BP, candidates_BGL, setup.trie).logp_BGL.sum().backward()

    def separate() -> None:
        policy.zero_grad()
        tokens, mask = setup.tokens_BP.repeat_interleave(group, 0), setup.mask_BP.repeat_interleave(group, 0)
        score(policy, tokens, mask, candidates_BGL.flatten(0, 1)[:, None], setup.trie).logp_BGL.sum().backward()

    seconds = interleaved_timings({"shared": shared, "separate": separate}, setup.size.rounds)
    policy.zero_grad()
    bench.figures |= {f"score_{label}_s{setup.suffix}": statistics.median(values) for label, values in seconds.items()}
    bench.ratios[f"score_vs_separate{setup.suffix}"] = ratio(seconds["separate"], seconds["shared"])


def _prompt_cache(setup: _DecodeSetup, bench: Bench) -> None:
    """Requests of users whose history has grown by one item since their last request, with and without a cache."""
    from genrec.policy.decoding.beam import beam
    from genrec.policy.decoding.prompt_cache import PromptCache

    def request(histories: Sequence[Sequence[int]], cache: PromptCache | None) -> None:
        for history in histories:
            tokens_BP, mask_BP = (part.to(setup.tokens_BP.device) for part in setup.prompts.encode([history]))
            prefilled = None if cache is None else cache.prefill(tokens_BP, mask_BP)
            beam(setup.policy, tokens_BP, mask_BP, setup.trie, setup.width, prefilled=prefilled)

    found: dict[str, list[float]] = {"whole": [], "cached": []}
    for _ in range(setup.size.rounds + 1):
        cache = PromptCache(setup.policy, 2**32)
        request([history[:-1] for history in setup.histories], cache)
        found["whole"].append(timed(lambda: request(setup.histories, None)))
        found["cached"].append(timed(lambda known=cache: request(setup.histories, known)))
    bench.ratios[f"prompt_cache{setup.suffix}"] = ratio(found["whole"][1:], found["cached"][1:])


def _item_head(setup: _DecodeSetup, bench: Bench) -> None:
    """The search of a policy with rows of items, guided by its head, compared with that of one without.

    ``item``: an item of the history is one position; ``codes``: its codes. Seconds and bytes of keys and values are of
    the whole batch.
    """
    from genrec.policy.backbone import build
    from genrec.policy.decoding.beam import HEAD_WEIGHT, beam
    from genrec.policy.decoding.prompt_cache import prefill

    device = setup.policy.device
    policies = {"without": (setup.policy, setup.prompts)}
    for form in ("item", "codes"):
        shape = setup.shape.replace(items=Items().replace(tokens=form))
        policy, prompts = build(shape, setup.catalog, max_history=len(setup.histories[0]), seed=0)
        policies[form] = (policy.eval().to(device), prompts)
    work: dict[str, Callable[[], object]] = {}
    for name, (policy, prompts) in policies.items():
        tokens_BP, mask_BP = (part.to(device) for part in prompts.encode(setup.histories))
        weight = HEAD_WEIGHT if policy.item_head is not None else 0.0
        work[name] = partial(beam, policy, tokens_BP, mask_BP, setup.trie, setup.width, head_weight=weight)
        used = _kv_bytes(prefill(policy, tokens_BP, mask_BP).cache)
        bench.figures[f"prompt_kv_mb_{name}{setup.suffix}"] = used / 2**20
    seconds = interleaved_timings(work, setup.size.rounds)
    queries = len(setup.histories)
    for name, values in seconds.items():
        bench.figures[f"ms_per_query_{name}{setup.suffix}"] = 1000 * statistics.median(values) / queries
        if name != "without":
            bench.ratios[f"item_head_{name}_over_without{setup.suffix}"] = ratio(values, seconds["without"])
