"""Tree decoding against Hugging Face ``generate``, and shared scoring against separate sequences."""

from __future__ import annotations

import statistics
from typing import Any

from cluster.bench import Bench, random_catalog, ratio, take_turns
from genrec.config import Config, Policy

BATCH, ITEMS, WIDTH, GROUP = 16, 3686, 20, 16


def run(config: Config) -> Bench:
    """A 6-layer hidden-256 Qwen3 on a random catalogue of 3,686 items; prompts of 64 tokens, batch 16, width 20."""
    import torch

    from genrec.policy.backbone import build
    from genrec.policy.decode import beam
    from genrec.policy.score import score
    from genrec.policy.tree import prompt_mask, prompt_positions

    torch.set_num_threads(config.compute.threads)
    generator = torch.Generator().manual_seed(config.seed)
    catalog = random_catalog(ITEMS, generator)
    shape = Policy(arch="qwen3", hidden=256, layers=6, heads=8, dropout=0.0)
    policy, prompts = build(shape, catalog, max_history=21, seed=config.seed)
    policy.eval()
    histories: Any = torch.randint(ITEMS, (BATCH, 21), generator=generator).tolist()
    tokens_BP, mask_BP = prompts.encode(histories)
    candidates_BGL = catalog.codes_NL[torch.randint(ITEMS, (BATCH, GROUP), generator=generator)]

    def prompt_only() -> None:
        with torch.no_grad():
            policy.hidden(tokens_BP, prompt_positions(mask_BP), prompt_mask(mask_BP))

    def shared() -> None:
        policy.zero_grad()
        score(policy, tokens_BP, mask_BP, candidates_BGL, catalog.trie).logp_BGL.sum().backward()

    def separate() -> None:
        policy.zero_grad()
        tokens, mask = tokens_BP.repeat_interleave(GROUP, 0), mask_BP.repeat_interleave(GROUP, 0)
        score(policy, tokens, mask, candidates_BGL.flatten(0, 1)[:, None], catalog.trie).logp_BGL.sum().backward()

    ours = beam(policy, tokens_BP, mask_BP, catalog.trie, WIDTH)
    theirs = generate(policy, tokens_BP, mask_BP, catalog, WIDTH)
    same = float((policy.sids.tokens(ours.codes_BWL) == theirs).float().mean())
    seconds = take_turns(
        {
            "tree": lambda: beam(policy, tokens_BP, mask_BP, catalog.trie, WIDTH),
            "generate": lambda: generate(policy, tokens_BP, mask_BP, catalog, WIDTH),
            "prompt": prompt_only,
            "score_shared": shared,
            "score_separate": separate,
        }
    )
    bench = Bench("decode", {f"{name}_s": statistics.median(values) for name, values in seconds.items()})
    bench.figures["same_tokens_as_generate"] = same
    length = tokens_BP.shape[1]
    bound = (length + 2 * WIDTH) / length
    bench.ratios["vs_generate_v800"] = ratio(seconds["generate"], seconds["tree"])
    bench.ratios["over_flop_bound"] = ratio(seconds["tree"], seconds["prompt"]) / bound
    bench.ratios["score_vs_separate"] = ratio(seconds["score_separate"], seconds["score_shared"])
    return bench


def generate(policy: Any, tokens_BP: Any, mask_BP: Any, catalog: Any, width: int) -> Any:
    """Tokens (B, W, L) of ``generate`` under a Python prefix table, which is how public training code decodes."""
    prompt, levels = tokens_BP.shape[1], catalog.levels
    children: dict[tuple[int, ...], list[int]] = {}
    for codes in sorted(policy.sids.tokens(catalog.codes_NL).tolist()):
        for level in range(levels):
            known = children.setdefault(tuple(codes[:level]), [])
            if not known or known[-1] != codes[level]:
                known.append(codes[level])
    out = policy.model.generate(
        input_ids=tokens_BP,
        attention_mask=mask_BP.long(),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=levels,
        min_new_tokens=levels,
        do_sample=False,
        prefix_allowed_tokens_fn=lambda _, ids: children.get(tuple(ids[prompt:].tolist()), [0]),
        renormalize_logits=True,
        length_penalty=0.0,
    )
    return out[:, prompt:].view(len(tokens_BP), width, levels)
