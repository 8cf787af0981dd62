"""The model card of an exported folder: what it is, how to use it, its figures, its data, its licence, its limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.data.readers import read_stats
from genrec.errors import InputError
from genrec.inference.hf_folder.folder_check import FolderCheck
from genrec.inference.run_record import RunRecord

USE = """```python
from transformers import AutoModelForCausalLM
from catalog_logits import CatalogLogits, SidSpace  # the file of this folder

model, space = AutoModelForCausalLM.from_pretrained(FOLDER).eval(), SidSpace(FOLDER)
tokens = space.encode(["an item id", "a later one"])  # oldest first
found = model.generate(
    tokens, logits_processor=[CatalogLogits(space, tokens.shape[1])], max_new_tokens=space.levels,
    num_beams=10, num_return_sequences=10, length_penalty=0.0, eos_token_id=None, do_sample=False,
)
print([space.item(row) for row in found])
```"""

ROWS = {
    "model": "the run as it is served by genrec",
    "policy": "the policy without the ItemKNN prior",
    "sid_path": "its semantic IDs alone",
    "item_head": "its item head alone",
}
"""Systems of a report that a card shows, and what each is called."""

FIGURES = ("ndcg@10", "hr@10", "hr@50")


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from; ``lost``: what the folder's plain model lacks of the run, in sentences."""

    run: RunRecord
    report: Path
    check: FolderCheck
    lost: Sequence[str]
    licence: str
    items: int


def write_card(facts: CardFacts) -> str:
    """The card, as Markdown with YAML front matter."""
    config = facts.run.config
    base = "" if config.policy.kind == "scratch" else f"base_model: {json.dumps(config.policy.path)}\n"
    front = f"library_name: transformers\npipeline_tag: text-generation\nlicense: {json.dumps(facts.licence)}\n{base}"
    parts = [
        f"---\n{front}tags:\n- recommendation\n- semantic-ids\n- genrec\n---\n",
        f"# {config.name}\n",
        f"A language model that reads a history of items and writes the semantic ID of the next one: one of "
        f"{facts.items:,} items of one catalogue. Trained with genrec.\n",
        f"## Use\n\nWithout genrec:\n\n{USE}\n\nWith genrec: `genrec import FOLDER` makes a run that `genrec.load` and "
        "`genrec serve` take; it has all parts of the policy.\n",
        f"## What the plain model lacks\n\n{_lost(facts)}\n",
        f"## Figures\n\n{_figures(facts)}\n",
        f"## Data\n\n{_data(facts)}\n",
        f"## Licence\n\n{_licence(facts)}\n",
        f"## Limits\n\n{LIMITS}\n",
    ]
    return "\n".join(parts)


LIMITS = """- It knows the items of its catalogue, and no others; of items without train events it knows only the codes.
- It repeats the habits of its log, popular items above all, and knows nothing of stock, prices or what is fit for whom.
- Prompts are as the training wrote them (`SidSpace.encode`); other text before a history has an unknown effect.
- A language model may hold parts of what it was trained on. Who may see the log's items and habits may see this."""


def _lost(facts: CardFacts) -> str:
    check = facts.check
    measured = (
        f"Over {check.histories} histories, the log-probability of an item by its semantic ID differs from the "
        f"run's policy by {check.mean:.2g} on average and {check.largest:.2g} at most; the best item is the same for "
        f"{check.same_first:.0%} of them."
    )
    return "\n".join([*(f"- {sentence}" for sentence in facts.lost), f"- {measured}"])


def _figures(facts: CardFacts) -> str:
    file = facts.report / "metrics.json"
    if not file.is_file():
        return "The run has no report of a test."
    try:
        metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} cannot be read ({error}); evaluate the run again") from None
    rows = [f"| {title} | {_row(metrics[name])} |" for name, title in ROWS.items() if name in metrics]
    best = [f"| {name} (baseline) | {_row(values)} |" for name, values in metrics.get("baselines", {}).items()]
    head = f"| | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}"
    queries = f"Test queries: {metrics['queries']:,}." if "queries" in metrics else ""
    return "\n".join([head, *rows, *best, "", queries, "", str(metrics.get("headline", ""))])


def _row(values: dict[str, Any]) -> str:
    item = values.get("item", values)
    return " | ".join(f"{item[name]:.4f}" if name in item else "" for name in FIGURES)


def _data(facts: CardFacts) -> str:
    stats, data = read_stats(facts.run.data), facts.run.config.data
    counts = ", ".join(f"{stats[name]:,} {name}" for name in ("users", "items", "interactions") if name in stats)
    return (
        f"{counts}; source `{data.source}`, split `{data.split}`, histories of at most {data.max_history} items. "
        "Users' histories are not in this folder; ids and titles of the items are."
    )


def _licence(facts: CardFacts) -> str:
    base = facts.run.config.policy
    known = (
        f"`{facts.licence}`, as the exporter said."
        if facts.licence != "other"
        else "None was named at the export. Ask the owner of the log and of the catalogue."
    )
    if base.kind == "scratch":
        return known
    return f"{known} It is derived from the model `{base.path}`, whose own licence holds for it too."
