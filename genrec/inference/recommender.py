"""A finished run as a recommender: ``genrec.load(run).recommend(history, k=10)``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genrec.baselines.itemknn import ItemKNN, KnnSettings, Pairs
from genrec.baselines.sparse import Sparse, mask_seen_items
from genrec.baselines.train_log import train_log
from genrec.config import Config
from genrec.data.tables import read_items, read_sequences
from genrec.errors import InputError
from genrec.inference.batch import on_nodes, without_seen
from genrec.inference.prior import RankedItems, normalise
from genrec.policy.backbone import load as load_policy
from genrec.policy.chat import generate
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import Item, Message, load_language
from genrec.policy.decoding.beam import beam
from genrec.policy.decoding.prompt_cache import PromptCache
from genrec.policy.decoding.request_constraints import Constraint, ItemAttributes, read_item_attributes
from genrec.policy.decoding.trie_masks import TrieMaskCache
from genrec.policy.prompts import Prompts
from genrec.sid import catalog_updates as catalogs
from genrec.sid.catalog import Catalog


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; ``score`` is its probability under the model, prior included where the run uses one.

    With a prior on the trie's nodes it is a share of what the search found.
    """

    id: str
    title: str
    score: float


@dataclass(frozen=True)
class Reply:
    """What the assistant wrote: ``text`` shows each item as its SID with the title beside it, ``items`` are their ids.

    ``ended`` is False where the answer was cut at ``max_tokens``.
    """

    text: str
    items: list[str]
    ended: bool


@dataclass(frozen=True)
class CatalogView:
    """The catalogue of one moment: where it was read, and the id and title of each of its rows, removed ones too."""

    path: Path
    catalog: Catalog
    prompts: Prompts
    ids: list[str]
    titles: list[str]
    rows: dict[str, int]
    facts: ItemAttributes
    constraints: TrieMaskCache


class Recommender:
    """The policy, catalogue and prior of a run, on the decoder that evaluated it.

    Args:
        about: the run's ``recommender.json``; storage: the root that its paths start from.
        live: serve the catalogue as ``workflows.assign --insert`` and ``--remove`` left it, else as it was assigned.
    """

    def __init__(self, about: dict[str, Any], storage: Path, *, live: bool = True) -> None:
        parts = {name: storage / place for name, place in about["parts"].items()}
        self._config = config = Config.model_validate(about["config"])
        self._assigned, self._backbones = parts["catalog"], storage / "backbones"
        self._live = storage / "live" / self._assigned.name if live else None
        self._items = read_items(parts["data"])
        self._titles: list[str] = self._items["title"].to_pylist()
        catalog, history = Catalog.load(self._assigned), config.data.max_history
        places: dict[str, Any] = {"max_history": history, "seed": config.seed, "cache": self._backbones}
        self._policy, self._prompts = load_policy(config.policy, catalog, parts["policy"], **places)
        self._digest = catalog.digest
        kept = config.decode.prompt_cache_mb * 2**20
        self._prompt_cache = PromptCache(self._policy, kept) if kept else None
        self._view = self._read_view(self._present())
        self._prior, self._mask_seen = about["prior"], bool(about["mask_seen"])
        self._knn: ItemKNN | None = None
        if self._prior["weight"]:
            log = train_log(read_sequences(parts["data"]), len(self._titles))
            self._knn = ItemKNN(Pairs(log), KnnSettings(**self._prior["settings"]))

    def recommend(
        self, history: Sequence[str], k: int = 10, constraint: Constraint | None = None
    ) -> list[Recommendation]:
        """The ``k`` items that most probably come next; removed ones are never among them.

        A ``constraint`` that leaves fewer than ``k`` items gives fewer, never one that it forbids.

        Args:
            history: item ids of the shop, oldest first; the last ``data.max_history`` of them count. Inserted and
                removed items may be among them.

        Raises:
            InputError: an empty history, an item that is not in the catalogue, k below 1, or a constraint that names
                what the catalogue lacks.
        """
        view = self._view
        unknown = [item for item in history if item not in view.rows]
        if unknown or not history or k < 1:
            raise InputError(
                f"cannot recommend {k} items after {len(history)} items, of which {len(unknown)} are unknown "
                f"({unknown[:3]}); wanted: k >= 1 and a history of at least one item of the catalogue"
            )
        rows = [view.rows[item] for item in history][-self._config.data.max_history :]
        mask_N = None if constraint is None else view.facts.mask(constraint, [view.rows[item] for item in history])
        ranked = self._ranked(view, rows, k, mask_N)
        return [Recommendation(view.ids[row], view.titles[row], score) for row, score in ranked]

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Reply:
        """The policy's answer in a conversation: text, with items of the catalogue in it.

        Args:
            messages: ``[{"role": "user", "content": "After [[id]], what next?"}, …]``, or the user's text alone.
                ``[[…]]`` holds an item's id, or its SID as ``<a_1><b_2><c_3>``. Without a system message the first
                one of the training templates is used.
            max_tokens: of text; an item that was begun is finished.
            temperature: 0 takes the best token, more draws from the ``top_p`` most probable mass, by ``seed``.

        Raises:
            InputError: a policy of SIDs alone, no user's message at the end, an unknown role or item, too many tokens.
        """
        sampling = generate.Sampling(max_tokens, temperature, top_p, seed)
        tokenizer, view = self._tokenizer, self._view
        said = self._messages(messages, view)
        form = ChatFormat(tokenizer, self._prompts.sids, view.catalog)
        written = generate.write(self._policy, form, view.catalog.trie, said, sampling)
        items = [view.ids[part.row] for part in written.parts if isinstance(part, Item)]
        codes_NL, sizes = view.catalog.codes_NL, view.catalog.level_sizes
        return Reply(generate.show(written.parts, codes_NL, sizes, view.titles), items, written.ended)

    def refresh(self) -> bool:
        """Take over what was inserted or removed since the last look; False (and one directory listing) if nothing was.

        Requests that are being answered meanwhile end on the catalogue that they began with.

        Raises:
            InputError: the changed catalogue cannot be read, or did not grow from the one that is served.
        """
        path = self._present()
        if path == self._view.path:
            return False
        self._view = self._read_view(path)
        return True

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._config.policy, self._backbones)

    def _messages(self, messages: str | Sequence[Mapping[str, str]], view: CatalogView) -> list[Message]:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if wrong := [turn for turn in turns if set(turn) != {"role", "content"} or turn["role"] not in generate.ROLES]:
            raise InputError(
                f"messages must be {{'role': {' | '.join(generate.ROLES)}, 'content': text}}, one of them is {wrong[0]!r}"
            )
        said: list[Any] = [
            Message(turn["role"], generate.read(turn["content"], view.rows, view.catalog))  # type: ignore[arg-type]
            for turn in turns
        ]
        if turns and turns[0]["role"] != "system":
            language = load_language(self._config.learning.instruction.languages[0])
            said.insert(0, Message("system", (language.system[0],)))
        return said

    def _present(self) -> Path:
        return self._assigned if self._live is None else catalogs.current(self._assigned, self._live)

    def _read_view(self, path: Path) -> CatalogView:
        catalog, ids, added = catalogs.read(path)
        catalog.require_digest(self._digest, "the policy of this run")
        titles = self._titles + [title for table in added for title in table["title"].to_pylist()]
        rows = {item_id: row for row, item_id in enumerate(ids)}
        facts = read_item_attributes(self._items, added, rows)
        return CatalogView(
            path, catalog, self._prompts.for_catalog(catalog), ids, titles, rows, facts, TrieMaskCache(catalog.trie)
        )

    def _ranked(self, view: CatalogView, rows: list[int], k: int, mask_N: Tensor | None) -> list[tuple[int, float]]:
        tokens_BP, mask_BP = view.prompts.encode([rows])
        recent_QH = np.array([rows[::-1]])
        scores, trie = self._scores(view, recent_QH), view.catalog.trie
        width = max(k + (len(rows) if self._mask_seen else 0), self._config.decode.width)
        masks, weight = view.constraints.masks([mask_N]), self._prior["weight"]
        nodes = None
        if scores is not None and self._prior["kind"] == "itemknn_nodes":
            nodes = on_nodes(trie, view.catalog.codes_NL, scores, weight)
        found = beam(
            self._policy, tokens_BP, mask_BP, trie, width, masks=masks, prompt_cache=self._prompt_cache, prior=nodes
        )
        logp_BW = found.logp_BW
        if nodes is not None:
            logp_BW = logp_BW + nodes.log_prior(trie.depth - 1, trie.path(found.codes_BWL)[..., -1:])[..., 0]
        beams = RankedItems(found.items_BW.numpy(), logp_BW.numpy())
        if self._mask_seen:
            beams = without_seen(beams, recent_QH, width - len(rows))
        probabilities = beams.probabilities(len(view.ids))
        if nodes is not None:
            probabilities = probabilities / probabilities.sum()
        elif scores is not None:
            scores = scores if mask_N is None else scores.multiply(mask_N.numpy()[None]).tocsr()
            probabilities = (1 - weight) * probabilities + weight * normalise(scores, self._prior["power"])
        row: Any = probabilities.tocsr()
        best = np.argsort(-row.data, kind="stable")[:k]
        return [(int(row.indices[i]), float(row.data[i])) for i in best]

    def _scores(self, view: CatalogView, recent_QH: np.ndarray) -> Sparse | None:
        """ItemKNN's scores (1, N) over the present catalogue; None where the run has no prior."""
        if self._knn is None:
            return None
        scores = _prior_scores(self._knn, view, recent_QH)
        return mask_seen_items(scores, recent_QH) if self._mask_seen else scores


def _prior_scores(knn: ItemKNN, view: CatalogView, recent_QH: np.ndarray) -> Sparse:
    """Scores (Q, N) over the present catalogue: inserted items neither vote nor get votes, removed ones get none."""
    known = knn.similarity_NN.shape[0]
    scores = knn.scores(np.where(recent_QH < known, recent_QH, -1))
    scores.resize((len(recent_QH), len(view.ids)))
    removed = view.catalog.removed
    return mask_seen_items(scores, np.tile(removed, (len(recent_QH), 1))) if removed else scores


def load(run: str | Path, *, live: bool = True) -> Recommender:
    """The recommender of a finished run.

    Args:
        run: the directory of its report, ``<storage>/runs/<name>``.
        live: with the items that were inserted and without those that were removed since; False: as assigned.

    Raises:
        InputError: no finished run is there, or one of its parts is missing.
    """
    directory = Path(run)
    try:
        about = json.loads((directory / "recommender.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} holds no finished run ({error}); make one with `python -m workflows.full`"
        ) from error
    return Recommender(about, directory.resolve().parent.parent, live=live)
