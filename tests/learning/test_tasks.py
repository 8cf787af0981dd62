"""Instruction tasks: what is said, what is learned of it, and how tasks are mixed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from support.synthetic import random_catalog
from support.tiny_lm import tiny_lm, tiny_tokenizer
from torch import Tensor

from benchmarks.harness import WITHOUT_ROWS
from genrec.config import Instruction, Lora, PolicyConfig, Tasks, TaskWeight, load_config
from genrec.errors import InputError
from genrec.learning.sft.batches import RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.learning.tasks.examples import ExampleBuilder
from genrec.learning.tasks.item_fields import ItemFields
from genrec.learning.tasks.loss import MixedLoss
from genrec.learning.tasks.mixture import ORDER, Mixture, MixtureEpochs, table
from genrec.policy.backbone import build
from genrec.policy.chat.chat_format import ChatFormat, Encoded, load_tokenizer
from genrec.policy.chat.task_schema import TASKS
from genrec.policy.chat.templates import Item, Message, load_language
from genrec.policy.prompts import SidTokens
from genrec.policy.sid_text import SidStyle

ITEMS = 24
KINDS = ("tooth", "hair", "soap", "paper")
CATALOG = random_catalog(ITEMS, (4, 4, 4))
HISTORIES = [[0, 4, 8, 1], [2, 3], [5, 9, 13], [7]]
TARGETS = [12, 6, 17, 11]
SETTINGS = Instruction()


def items(count: int = ITEMS, **changed: Sequence[Any]) -> pa.Table:
    titles = [f"{KINDS[i % 4]} thing number {i}" for i in range(count)]
    columns: dict[str, Any] = {
        "title": titles,
        "description": [f"a {title} for the house" for title in titles],
        "brand": [f"brand {i % 3}" for i in range(count)],
        "categories": [["shop", KINDS[i % 4]] for i in range(count)],
    }
    types = {"categories": pa.list_(pa.string())}
    return pa.table({name: pa.array(v, types.get(name, pa.string())) for name, v in (columns | changed).items()})


def queries() -> RowExamples:
    return RowExamples(pa.table({"history": HISTORIES, "target": TARGETS}))


def example_builder(
    table: pa.Table | None = None, languages: Sequence[str] = ("en", "zh"), **options: Any
) -> ExampleBuilder:
    item_fields = ItemFields(items() if table is None else table, SETTINGS)
    return ExampleBuilder(
        item_fields, [load_language(name) for name in languages], SETTINGS, HISTORIES, TARGETS, **options
    )


def form(template: Any = ...) -> ChatFormat:
    tokenizer = tiny_tokenizer() if template is ... else tiny_tokenizer(template)
    return ChatFormat(tokenizer, SidTokens(300, CATALOG.level_sizes), CATALOG)


def mixture(seed: int = 0, max_tokens: int = 4096, **weights: TaskWeight) -> Mixture:
    return Mixture(Tasks(**weights), example_builder(), queries(), form(), seed=seed, max_tokens=max_tokens)


def learned(encoded: Any, of: ChatFormat) -> str:
    """The label tokens as text, SIDs as #."""
    tokens = encoded.tokens_S[encoded.label_S].tolist()
    return "".join("#" if token >= 300 else of.tokenizer.decode([token]) for token in tokens)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_several_phrasings_and_ends_with_the_assistant(task: str, language: str) -> None:
    assert len(load_language(language).tasks[task]) >= 3
    own = example_builder(languages=[language])
    for row in own.rows(task)[:3]:
        for draw in range(6):
            messages = own.build(task, int(row), np.random.default_rng(draw))
            roles = [message.role for message in messages]
            if TASKS[task].is_passage:
                assert roles == ["assistant"]
                continue
            assert roles == ["system", *["user", "assistant"] * ((len(roles) - 1) // 2)]
            assert not any("{" in part for message in messages for part in message.parts if isinstance(part, str))
            assert any(isinstance(part, Item) for message in messages for part in message.parts)


def test_only_what_the_assistant_says_is_learned_and_the_closing_marker_is_not() -> None:
    said = [
        Message("system", ("You know items.",)),
        Message("user", ("After ", Item(3), "?")),
        Message("assistant", ("Take ", Item(5), ".")),
        Message("user", ("Thanks",)),
        Message("assistant", ("Bye",)),
    ]
    own = form()
    encoded = own.encode(said)
    assert learned(encoded, own) == "Take [[###.<|im_end|>Bye<|im_end|>"
    at = int((encoded.tokens_S == own.open[0]).nonzero()[1])
    assert torch.equal(encoded.tokens_S[at + 1 : at + 4], own.sids.tokens(CATALOG.codes_NL[5]))


@pytest.mark.parametrize("template", [..., None])
def test_the_prompt_of_a_chat_is_the_beginning_of_the_training_example(template: Any) -> None:
    own, made = form(template), example_builder()
    for task in (name for name, schema in TASKS.items() if not schema.is_passage):
        messages = made.build(task, int(made.rows(task)[0]), np.random.default_rng(1))
        prompt_P, encoded = own.prompt(messages[:-1]), own.encode(messages)
        assert torch.equal(encoded.tokens_S[: len(prompt_P)], prompt_P)
        assert encoded.label_S[len(prompt_P)]


def test_without_a_chat_template_a_conversation_is_lines_and_the_answer_ends_with_the_end_of_text() -> None:
    own = form(None)
    encoded = own.encode([Message("user", ("Hi",)), Message("assistant", ("Ho",))])
    assert own.tokenizer.decode(encoded.tokens_S) == "user:\nHi\nassistant:\nHo<|im_end|>\n"
    assert learned(encoded, own) == "Ho<|im_end|>"


def test_text_can_neither_steer_the_template_nor_open_a_span() -> None:
    own = form()
    for text in ("<|im_end|> [[ ]]", "<|im_end|> [[[M4]]] [[[["):
        plain = own.encode([Message("user", ("Hi",)), Message("assistant", (text,))])
        assert plain.tokens_S.tolist().count(own.end) == 2
        assert not set(plain.tokens_S.tolist()) & {*own.open, *own.close}


def test_a_template_that_refuses_or_drops_a_role_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="roles must alternate"):
        form("{{ raise_exception('roles must alternate') }}")
    dropping = form("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="drops the message of the role 'system'"):
        dropping.prompt([Message("system", ("x",))])


def test_examples_depend_on_seed_epoch_and_row_alone() -> None:
    everything = {name: TaskWeight(weight=1.0, repeat=2) for name in ORDER}
    one, other = mixture(**everything), mixture(**everything)
    index = np.arange(len(one))
    assert torch.equal(one.take(index).tokens_CS, other.take(index).tokens_CS)
    backwards = other.take(index[::-1])
    width = int(backwards.mask_CS[0].sum())
    last = one.take(index[-1:])
    assert torch.equal(backwards.tokens_CS[0, :width], last.tokens_CS[0])
    assert not torch.equal(one.take(index + len(one)).tokens_CS, one.take(index).tokens_CS)
    assert not torch.equal(mixture(seed=1, **everything).take(index).tokens_CS, one.take(index).tokens_CS)


def test_weights_are_shares_of_the_loss_and_repeats_are_visits() -> None:
    mixed = mixture(next_item=TaskWeight(weight=0.7, repeat=3), semantic_anchoring=TaskWeight(weight=0.3))
    assert len(mixed) == 3 * len(HISTORIES) + ITEMS
    found = mixed.statistics()
    assert found["tasks"]["next_item"]["loss_share"] == pytest.approx(0.7, abs=1e-3)
    assert found["tasks"]["semantic_anchoring"]["loss_share"] == pytest.approx(0.3, abs=1e-3)
    batch = mixed.take(np.arange(len(mixed)))
    assert float(batch.factor_R.sum()) == pytest.approx(0.7 * len(mixed), rel=1e-5)
    assert float(batch.factor_C.sum()) == pytest.approx(0.3 * len(mixed), rel=1e-5)
    assert 0 < found["sid_share"] < 1
    assert "semantic_anchoring" in table(found)
    json.dumps(found, allow_nan=False)


def test_an_epoch_visits_every_example_once_and_the_next_one_in_other_words() -> None:
    mixed = mixture(next_item=TaskWeight(weight=1), attribute_mapping=TaskWeight(weight=1))
    epochs = MixtureEpochs(mixed, 8, seed=0)
    numbers = np.concatenate([epochs.index(step) for step in range(epochs.steps)])
    assert sorted(numbers) == list(range(len(mixed)))
    following = np.concatenate([epochs.index(step) for step in range(epochs.steps, 2 * epochs.steps)])
    assert sorted(following) == list(range(len(mixed), 2 * len(mixed)))


def test_pieces_of_a_batch_hold_all_of_it_and_conversations_alike_in_length() -> None:
    mixed = mixture(
        next_item=TaskWeight(weight=1),
        semantic_anchoring=TaskWeight(weight=1),
        recommendation_reasoning=TaskWeight(weight=1),
    )
    epochs = MixtureEpochs(mixed, 16, seed=0)

    def padded(pieces: Sequence[Any]) -> int:
        return sum(piece.tokens_CS.numel() for piece in pieces)

    spared = 0
    for step in range(6 * epochs.steps):
        pieces, targets = epochs.micro_batches(step, 4, 0, 1)
        index = epochs.index(step)
        plain = [mixed.take(index[at : at + 4]) for at in range(0, len(index), 4)]
        assert targets == sum(piece.targets for piece in plain) == len(index)
        assert sum(int(piece.mask_CS.sum()) for piece in pieces) == sum(int(one.mask_CS.sum()) for one in plain)
        longest = [piece.tokens_CS.shape[1] for piece in pieces]
        assert longest == sorted(longest)
        spared += padded(plain) - padded(pieces)
    assert spared > 0


def loss_by_hand(policy: Any, encoded: Encoded) -> Tensor:
    """Token by token from the plain model's logits: text among text, SIDs among the catalogue's."""
    logits_SV = policy.model(input_ids=encoded.tokens_S[None]).logits[0]
    losses, codes = [], list[int]()
    for at in encoded.label_S.nonzero()[:, 0].tolist():
        token, row_V = int(encoded.tokens_S[at]), logits_SV[at - 1]
        level = len(codes)
        if token < policy.sids.text_end:
            losses.append(row_V[: policy.sids.text_end].logsumexp(0) - row_V[token])
            continue
        same = (CATALOG.codes_NL[:, :level] == torch.tensor(codes, dtype=torch.long)).all(-1)
        allowed = policy.sids.token(level, CATALOG.codes_NL[same, level].unique())
        losses.append(row_V[allowed].logsumexp(0) - row_V[token])
        codes = [*codes, token - policy.sids.base - policy.sids.offsets[level]] if level < 2 else []
    return 3 * torch.stack(losses).mean()


@pytest.mark.parametrize(("tied", "style"), [(True, "letters"), (False, "letters"), (True, "numbered")])
def test_the_loss_is_that_of_the_plain_model_token_by_token(tmp_path: Path, tied: bool, style: SidStyle) -> None:
    path, lora = str(tiny_lm(tmp_path, tied=tied)), Lora(rank=2, dropout=0.0)
    settings = PolicyConfig(kind="pretrained", path=path, lora=lora, items=WITHOUT_ROWS, sid_tokens=style)
    policy, prompts = build(settings, CATALOG, max_history=5, seed=0)
    own = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG)
    tasks = Tasks(
        next_item=TaskWeight(weight=1),
        semantic_recovery=TaskWeight(weight=1),
        category_analysis=TaskWeight(weight=1),
        running_text=TaskWeight(weight=1),
    )
    mixed = Mixture(tasks, example_builder(), queries(), own, seed=0, max_tokens=1024)
    next_item = SftLoss(prompts, CATALOG)
    index = np.array([0, 1, 5, 8, len(mixed) - 3])
    batch = mixed.take(index)
    found = MixedLoss(next_item, CATALOG.trie)(policy, batch)
    found.backward()
    assert all(p.grad is not None for p in policy.trainable().values())
    with torch.no_grad():
        expected = batch.factor_R[0] * next_item(policy, queries().take(np.array([0, 1])))
        factors = {share.name: share.factor for share in mixed.shares}
        for task, row in (("category_analysis", 1), ("semantic_recovery", 1)):
            expected += factors[task] * loss_by_hand(policy, own.encode(mixed.build(task, row, 0)))
        passage = own.encode_passage(mixed.build("running_text", ITEMS - 3, 0)[0].parts)
        expected += factors["running_text"] * loss_by_hand(policy, passage)
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


def test_items_without_text_are_left_out_and_a_task_without_any_is_refused() -> None:
    titles = ["", *[f"thing {i}" for i in range(1, ITEMS)]]
    bare = items(title=titles, description=[""] * ITEMS, categories=[[]] * ITEMS, brand=[""] * ITEMS)
    own = example_builder(bare)
    assert own.rows("semantic_anchoring").tolist() == list(range(1, ITEMS))
    with pytest.raises(InputError, match=r"none of the 3 windows has the fields of learning\.tasks\.category_analysis"):
        own.rows("category_analysis")
    for draw in range(20):
        said = own.build("semantic_anchoring", 1, np.random.default_rng(draw))
        assert all(part != "" for message in said for part in message.parts)


def test_empty_histories_and_removed_items_are_left_out() -> None:
    item_fields, languages = ItemFields(items(), SETTINGS), [load_language("en")]
    own = ExampleBuilder(item_fields, languages, SETTINGS, [[], [1], [2]], [3, 4, 5], absent=[5])
    assert own.rows("sequence_prediction").tolist() == [1]
    assert 5 not in own.rows("semantic_anchoring")
    with pytest.raises(InputError, match="none of the 3 queries"):
        own.rows("multi_turn_dialogue_sequence")


def test_an_example_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(InputError, match="the model reads 50"):
        mixture(max_tokens=50, document_to_id=TaskWeight(weight=1)).take(np.array([0]))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("sequence_prediction", {"assistant": "no item"}, r"lacks the field {target}"),
        ("sequence_prediction", {"user": "{histroy}"}, r"uses the fields \['histroy'\]"),
        ("sequence_prediction", {"user": "{history"}, "unbalanced braces"),
        ("sequence_prediction", {"user": 7}, "wanted a text"),
        ("sequence_prediction", {"extra": "x"}, "has the lines"),
        ("semantic_anchoring", {"user": "{title}", "assistant": "{category}"}, r"lacks the field {sid}"),
        ("made_up", {}, r"unknown tasks \['made_up'\]"),
    ],
)
def test_a_template_that_is_wrong_says_where(tmp_path: Path, task: str, change: dict, message: str) -> None:
    packaged = Path(__file__).parents[2] / "genrec/policy/chat/languages/en.yaml"
    content = yaml.safe_load(packaged.read_text())
    content["tasks"].setdefault(task, [{}])[0].update(change)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        load_language(str(file))


def test_a_language_that_is_not_there_and_one_without_a_task_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'fr' is neither a packaged language"):
        load_language("fr")
    content = yaml.safe_load((Path(__file__).parents[2] / "genrec/policy/chat/languages/en.yaml").read_text())
    del content["tasks"]["semantic_recovery"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="no template of semantic_recovery"):
        example_builder(languages=[str(file)]).rows("semantic_recovery")


def test_the_config_refuses_unknown_tasks_and_mixtures_that_nothing_reads() -> None:
    pretrained = ["policy.kind=pretrained", "learning.sft.example_format=tasks"]
    assert load_config([], [*pretrained, "learning.tasks.next_item.weight=0.7"]).learning.tasks.chosen
    for overrides, message in (
        ([*pretrained, "learning.tasks.next_itme.weight=1"], "nearest known key is 'learning.tasks.next_item.weight'"),
        (pretrained, "needs a weight above 0 in learning.tasks"),
        (["learning.tasks.next_item.weight=1"], "weights that nothing reads"),
        (["learning.stages.sid_embeddings.steps=3"], "need policy.kind=pretrained"),
        ([*pretrained, "learning.tasks.next_item.weight=-1"], "greater than or equal to 0"),
    ):
        with pytest.raises(InputError, match=message):
            load_config([], overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "You help a customer."}, "wanted a list of texts"),
        ({"system": []}, "wanted a list of texts"),
        ({"tasks": None}, "nor a readable YAML file"),
        ({"tasks": ["sequence_prediction"]}, "nor a readable YAML file"),
        ({"tasks": {"sequence_prediction": None}}, "nor a readable YAML file"),
        ({"phrases": ["a"]}, "nor a readable YAML file"),
    ],
)
def test_a_language_of_another_form_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    packaged = Path(__file__).parents[2] / "genrec/policy/chat/languages/en.yaml"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(packaged.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_language(str(file))
