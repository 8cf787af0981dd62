"""Three stages on a tiny pretrained model: what each may move, resumed wherever they were cut; chat with the result."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from support.cuts import Cut, cut_after
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config
from support.tiny_lm import tiny_lm
from test_tasks import CATALOG, example_builder, queries
from torch import Tensor

import genrec
from benchmarks.harness import WITHOUT_ROWS
from cluster import teacher
from genrec.config import Config, Lora, PolicyConfig, Sft, StageSettings, Tasks, TaskWeight
from genrec.errors import InputError
from genrec.learning.checkpoints import DirectoryCheckpoints, TrainingState
from genrec.learning.sft.losses import SftLoss
from genrec.learning.sft.stages import (
    StageCheckpoints,
    TrainingStage,
    run_stages,
    settings_of,
    train_only_sid_embeddings,
)
from genrec.learning.tasks.loss import MixedLoss
from genrec.learning.tasks.mixture import Mixture, MixtureEpochs
from genrec.policy.backbone import build
from genrec.policy.chat import generate
from genrec.policy.chat.chat_format import ChatFormat, load_tokenizer
from genrec.policy.chat.templates import Item, Message
from genrec.policy.decoding.tree import prompt_mask
from genrec.policy.model import Policy as Model
from genrec.policy.prompts import ITEM_TOKEN, Prompts
from genrec.policy.sid_text import SidStyle

ANCHORS = Tasks(running_text=TaskWeight(weight=0.5), attribute_mapping=TaskWeight(weight=0.5))
JOINT = Tasks(next_item=TaskWeight(weight=0.7, repeat=4), semantic_anchoring=TaskWeight(weight=0.3))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PolicyConfig:
    return PolicyConfig(
        kind="pretrained", path=str(tiny_lm(tmp_path_factory.mktemp("lm"))), lora=Lora(rank=2, dropout=0.1)
    )


def built(settings: PolicyConfig) -> tuple[Model, Prompts]:
    return build(settings, CATALOG, max_history=5, seed=0)


def train(settings: PolicyConfig, directory: Path, saves: int = 10**9) -> tuple[Model, TrainingState]:
    """Three short stages; stops with ``Cut`` after ``saves`` checkpoints."""
    policy, prompts = built(settings)
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG, prompts.form)
    loss = MixedLoss(SftLoss(prompts, CATALOG), CATALOG.trie)
    last = Sft(
        example_format="tasks", epochs=1, lr=1e-3, batch_size=16, micro_batch=8, checkpoint_every=2, weight_decay=0.1
    )
    stages = []
    for name, stage, tasks in (
        ("rows", StageSettings(lr=1e-2, steps=4), ANCHORS),
        ("pretraining", StageSettings(lr=1e-3, epochs=1), ANCHORS),
        ("instruction", None, JOINT),
    ):
        epochs = MixtureEpochs(Mixture(tasks, example_builder(), queries(), form, seed=0, max_tokens=1024), 16, 0)
        own = settings_of(stage, last, epochs.steps, rows_only=name == "rows") if stage else last
        stages.append(TrainingStage(name, own, epochs, loss, rows_only=name == "rows"))
    checkpoints = cut_after(DirectoryCheckpoints(directory), saves)
    state = run_stages(
        policy,
        stages,
        seed=0,
        accelerator=Accelerator(cpu=True),
        checkpoints=checkpoints,
        validate=lambda _: {"ndcg@10": 0.0, "hr@10": 0.0},
    )
    return policy, state


def test_stages_that_are_cut_anywhere_end_with_the_weights_of_an_undisturbed_run(
    settings: PolicyConfig, tmp_path: Path
) -> None:
    policy, state = train(settings, tmp_path / "whole")
    assert set(state.best) == set(policy.trainable())
    assert {record.get("stage") for record in state.curve} == {1, 2, None}
    cuts = 0
    for _ in range(20):
        try:
            resumed, again = train(settings, tmp_path / "cut", saves=2)
        except Cut:
            cuts += 1
            continue
        break
    assert cuts >= 3
    for name, parameter in policy.trainable().items():
        assert torch.equal(parameter, resumed.trainable()[name]), name
    assert again.curve == state.curve


def test_a_checkpoint_of_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    checkpoints = DirectoryCheckpoints(tmp_path)
    StageCheckpoints(checkpoints, "removed", []).save(lambda directory: None, {"step": 1})
    with checkpoints.latest() as directory:
        assert directory is not None
        assert json.loads((directory / "stage.json").read_text()) == {"stage": "removed", "earlier": []}
    with StageCheckpoints(checkpoints, "other", []).latest() as directory:
        assert directory is None
    with pytest.raises(InputError, match=r"got a checkpoint of stage 'removed', wanted one of \['next item'\]"):
        stage: Any = TrainingStage("next item", Sft(), None, None)  # type: ignore[arg-type]
        run_stages(
            None,  # type: ignore[arg-type]
            [stage],
            seed=0,
            accelerator=Accelerator(cpu=True),
            checkpoints=checkpoints,
            validate=lambda _: {},
        )


def test_in_the_first_stage_the_sid_rows_alone_learn(settings: PolicyConfig) -> None:
    policy, prompts = built(settings)
    loss = SftLoss(prompts, CATALOG)
    tables = {id(table) for table, _ in policy.sid_tables()}
    with train_only_sid_embeddings(policy):
        assert {id(parameter) for parameter in policy.trainable().values()} == tables
        loss(policy, queries().take(torch.arange(4).numpy())).backward()
    assert {id(p) for p in policy.trainable().values() if p.grad is not None} == tables
    assert len(policy.trainable()) > len(tables)


def test_of_a_whole_table_the_sid_rows_alone_get_a_gradient(settings: PolicyConfig) -> None:
    adapted, prompts = built(settings.replace(items=WITHOUT_ROWS))
    model = type(adapted.model)(adapted.model.config)
    whole = Model(model, adapted.sids)
    with train_only_sid_embeddings(whole):
        SftLoss(prompts, CATALOG)(whole, queries().take(torch.arange(4).numpy())).backward()
    [(table, rows)] = whole.sid_tables()
    assert table.grad is not None
    assert not table.grad[: rows.start].any()
    assert table.grad[rows].any()


def test_running_text_trains_all_weights_where_finetuning_is_full(settings: PolicyConfig) -> None:
    policy, prompts = built(settings.replace({"finetuning": "full"}))
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG, prompts.form)
    loss = MixedLoss(SftLoss(prompts, CATALOG), CATALOG.trie)
    tasks = Tasks(running_text=TaskWeight(weight=1), next_item=TaskWeight(weight=1))
    mixed = Mixture(tasks, example_builder(), queries(), form, seed=0, max_tokens=1024)
    loss(policy, mixed.take(torch.arange(len(mixed)).numpy())).backward()
    weights = dict(policy.named_parameters())
    assert len(policy.trainable()) == len(weights)
    still = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in still if "items." not in name], still


@torch.no_grad()
def slowly(policy: Model, form: ChatFormat, prompt_P: Tensor, max_tokens: int) -> list[int]:
    """Greedy decoding without a cache, a whole forward per token."""
    tokens, written, codes, in_span = prompt_P.tolist(), list[int](), list[int](), False
    left_N = torch.ones(len(CATALOG), dtype=torch.bool)
    for _ in range(max_tokens * 8):
        mask_1S = torch.ones(1, len(tokens), dtype=torch.bool)
        hidden_D = policy.hidden(torch.tensor([tokens]), torch.arange(len(tokens))[None], prompt_mask(mask_1S))[0, -1]
        if in_span:
            same = left_N & (CATALOG.codes_NL[:, : len(codes)] == torch.tensor(codes, dtype=torch.long)).all(-1)
            allowed = CATALOG.codes_NL[same, len(codes)].unique()
            logits_K = policy.level_logits(hidden_D, len(codes))
            codes.append(int(allowed[logits_K[allowed].argmax()]))
            tokens.append(int(policy.sids.token(len(codes) - 1, torch.tensor(codes[-1]))))
            written.append(tokens[-1])
            if len(codes) == len(CATALOG.level_sizes):
                item = CATALOG.item_of(tuple(codes))
                assert item is not None
                left_N[item] = False
                tokens[-1] = ITEM_TOKEN + item
                tokens += form.close
                written += form.close
                codes, in_span = [], False
            continue
        logits_V = policy.vocabulary_logits(hidden_D)[: policy.sids.text_end].masked_fill(
            ~form.text_token_mask(), -torch.inf
        )
        tokens.append(int(logits_V.argmax()))
        written.append(tokens[-1])
        in_span = tokens[-1] == form.open[0]
        if tokens[-1] == form.end or len(tokens) > len(prompt_P) + max_tokens:
            break
    return written


@pytest.mark.parametrize("style", ["letters", "numbered"])
def test_chat_with_a_cache_writes_what_it_writes_without_and_items_are_of_the_catalogue(
    settings: PolicyConfig, tmp_path: Path, style: SidStyle
) -> None:
    settings = settings.replace({"sid_tokens": style})
    policy, _ = train(settings, tmp_path)
    policy.eval()
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG, "last")
    with torch.no_grad():  # the untrained model hardly ever opens a span by itself
        head: Any = policy.model.get_output_embeddings()
        rows, _ = policy.sid_tables()[0]
        opening = head.token_adapter.base_layer.weight if style == "letters" else rows
        opening[form.open[0] if style == "letters" else 0] *= 8
    said = [Message("user", ("After ", Item(3), ", what?"))]
    written = generate.generate_reply(policy, form, CATALOG.trie, said, generate.Sampling(max_tokens=24))
    assert len(written.tokens) >= 24 or written.ended
    assert written.tokens == slowly(policy, form, form.prompt(said), 40)[: len(written.tokens)]

    def draw(seed: int, most_items: int | None = None) -> generate.GeneratedReply:
        sampling = generate.Sampling(24, temperature=1.5, top_p=0.9, seed=seed)
        return generate.generate_reply(policy, form, CATALOG.trie, said, sampling, most_items=most_items)

    drawn = [draw(seed) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert any(one != drawn[0] for one in drawn)
    found = [part for one in (written, *drawn) for part in one.parts if isinstance(part, Item)]
    assert all(0 <= item.row < len(CATALOG) for item in found)
    assert found
    long = generate.generate_reply(policy, form, CATALOG.trie, said, generate.Sampling(400))
    named = [part.row for part in long.parts if isinstance(part, Item)]
    assert len(named) > 8 and len(set(named[:24])) == min(24, len(named))  # Each item once, before any again.
    for seed, whole in zip((1, 2, 3, 4), drawn[1:], strict=True):
        at = next((place for place, part in enumerate(whole.parts) if isinstance(part, Item)), len(whole.parts))
        assert draw(seed, most_items=1).parts == whole.parts[: at + 1]
    titles, about = [f"title {i}" for i in range(24)], (CATALOG.codes_NL, CATALOG.level_sizes)
    shown = generate.format_parts([found[0]], *about, titles, style)
    assert shown.startswith({"letters": "[[<a_", "numbered": "<|sid_start|><|sid_"}[style])
    title = f" (title {found[0].row})"
    assert shown.endswith({"letters": "]]", "numbered": "<|sid_end|>"}[style] + title)
    said = generate.format_parts([found[0], title[:3], f"{title[3:]}, and", found[0]], *about, titles, style)
    assert said == f"{shown}, and{shown}"
    assert generate.parse_parts(said, {}, CATALOG, style) == (found[0], f"{title}, and", found[0], title)


def test_what_a_user_writes_is_read_as_text_and_items() -> None:
    a, b, c = CATALOG.codes_NL[7].tolist()
    parts = generate.parse_parts(f"After [[x1]] and [[<a_{a}><b_{b}><c_{c}>]]: what?", {"x1": 2}, CATALOG)
    assert parts == ("After ", Item(2), " and ", Item(7), ": what?")
    for wrong in ("[[nothing]]", "[[<a_1>]]", "[[<a_99><b_0><c_0>]]"):
        with pytest.raises(InputError, match="no item of the catalogue"):
            generate.parse_parts(wrong, {"x1": 2}, CATALOG)


def test_a_chat_that_cannot_be_is_one_clear_error(settings: PolicyConfig) -> None:
    policy, _ = built(settings)
    form = ChatFormat(load_tokenizer(settings, None), policy.sids, CATALOG)
    for messages, message in (
        ([], "the last message must be the user's"),
        ([Message("assistant", ("Hi",))], "the last message must be the user's"),
        ([Message("user", ("x" * 1000,))], "the model has 1024 positions"),
    ):
        with pytest.raises(InputError, match=message):
            generate.generate_reply(policy, form, CATALOG.trie, messages, generate.Sampling())
    for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(InputError, match="wanted max_tokens >= 1"):
            generate.Sampling(**wrong)
    with pytest.raises(InputError, match=r"chat and tasks need policy\.kind=pretrained or policy\.tokenizer=bytes"):
        load_tokenizer(PolicyConfig(), None)


def staged(storage: Path, shop: Path, path: str, *overrides: str) -> Config:
    return tiny_config(
        storage,
        shop,
        "policy.kind=pretrained",
        f"policy.path={path}",
        "policy.lora.rank=4",
        "learning.sft={example_format: tasks, epochs: 1, lr: 5e-3, batch_size: 64, micro_batch: 64, eval_queries: 20}",
        "learning.tasks={next_item: {weight: 0.7}, recommendation_reasoning: {weight: 0.3}}",
        "learning.stages.sid_embeddings.steps=2",
        "learning.stages.pretraining.epochs=1",
        "learning.rl.steps=2",
        *overrides,
    )


def test_the_workflow_goes_through_the_stages_and_the_run_can_be_talked_to(
    settings: PolicyConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shop = chain_shop(tmp_path / "shop", users=24)
    config = staged(tmp_path / "storage", shop, settings.path)
    made(config, "evaluate")
    assert "stage 1 of 3: sid_embeddings" in caplog.text
    assert "% of the learned tokens are SIDs" in caplog.text
    first = made(config, "sft").path
    mixture = json.loads((first / "mixture.json").read_text())
    assert list(mixture) == ["sid_embeddings", "pretraining", "instruction"]
    assert set(mixture["instruction"]["tasks"]) == {"next_item", "recommendation_reasoning"}
    stages = {record.get("stage") for record in json.loads((first / "curve.json").read_text())["curve"]}
    assert stages == {1, 2, None}
    other = config.replace({"learning.stages": type(config.learning.stages)()})
    assert made(other, "sft").path != first
    recommender = genrec.load(Path(config.storage) / "runs" / "tiny")
    reply = recommender.chat("I took [[i3]] and [[i4]]. What next?", max_tokens=16)
    assert reply == recommender.chat(
        [{"role": "user", "content": "I took [[i3]] and [[i4]]. What next?"}], max_tokens=16
    )
    assert all(item.startswith("i") for item in reply.items)
    for wrong in ([], [{"role": "robot", "content": "x"}], [{"role": "user"}], "[[never heard of]]"):
        with pytest.raises(InputError):
            recommender.chat(wrong)  # type: ignore[arg-type]


class Server(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        answer = {"choices": [{"message": {"content": f"Reason\nnumber {len(self.seen)}."}}]}
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_teacher_is_asked_once_per_query_and_its_key_is_written_nowhere(
    settings: PolicyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GENREC_TEACHER_KEY", "very-secret")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    shop = chain_shop(tmp_path / "shop", users=6)
    words = f"learning.instruction.teacher={{url: '{url}', model: big, examples: 6}}"
    both = "learning.tasks.preference_analysis.weight=0.1"
    config = staged(tmp_path / "storage", shop, settings.path, words, both)
    data = made(config, "prepare").path
    try:
        assert teacher.ask(config, data, tmp_path) == 12
        with (tmp_path / teacher.FILE).open("a") as file:
            file.write('{"row": 1, "langu')
        assert teacher.ask(config, data, tmp_path) == 0
    finally:
        server.shutdown()
        server.server_close()
    path, key, body = Server.seen[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer very-secret", "big")
    assert "thing number" in body["messages"][0]["content"]
    texts = teacher.read_texts(tmp_path)
    assert "Reason number 1." in texts.values()
    assert {(task, language) for task, _, language in texts} == {
        (task, language) for task in ("recommendation_reasoning", "preference_analysis") for language in ("en", "zh")
    }
    asked = [body["messages"][0]["content"] for _, _, body in Server.seen]
    assert (
        sum("describe the customer's taste" in question or "描述这位顾客的口味" in question for question in asked) == 6
    )
    written = "".join(file.read_text() for file in tmp_path.rglob("*.json*"))
    assert "very-secret" not in written + capsys.readouterr().out
    (tmp_path / teacher.FILE).unlink()
    with pytest.raises(InputError, match="gave no answer") as refused:
        teacher.ask(config, data, tmp_path)
    assert "very-secret" not in str(refused.value)


def test_without_a_teacher_nobody_is_asked(tmp_path: Path) -> None:
    assert teacher.ask(Config(), tmp_path, tmp_path) == 0
    assert teacher.read_texts(tmp_path) == {}
