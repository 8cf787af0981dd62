"""SID rows of pretrained models, with tied and with untied heads: what they start from, and that they learn."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from support.pipeline import made
from support.synthetic import chain_shop, random_catalog, tiny_config, tiny_pretrained
from torch import Tensor

from benchmarks.harness import WITHOUT_ROWS
from cluster.train import RunSpec
from genrec.config import Lora, PolicyConfig, Sft
from genrec.errors import InputError
from genrec.learning.checkpoints import DirectoryCheckpoints
from genrec.learning.sft.batches import Epochs, RowExamples
from genrec.learning.sft.losses import SftLoss
from genrec.learning.sft.trainer import SftTrainer
from genrec.policy.backbone import build
from genrec.policy.model import Policy as Model
from genrec.policy.prompts import Prompts
from genrec.policy.sid_embeddings import EmbeddingUpdateCheck
from genrec.sid.catalog import Catalog

TITLES = [f"w{i} w{(i * 7) % 30}" for i in range(20)]
EITHER = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return random_catalog(20, (4, 4, 4))


def built(directory: Path, catalog: Catalog, tied: bool, sid_init: str = "text") -> tuple[Model, Prompts]:
    path, lora = str(tiny_pretrained(directory, tied=tied)), Lora(rank=4, alpha=8, dropout=0.0)
    chosen: dict[str, Any] = {"path": path, "lora": lora, "sid_init": sid_init, "items": WITHOUT_ROWS}
    settings = PolicyConfig(kind="pretrained", **chosen)
    return build(settings, catalog, max_history=4, seed=0, titles=TITLES)


def tables(policy: Model) -> list[tuple[Tensor, Tensor]]:
    """The text rows and the SID rows of each table."""
    own = dict(policy.model.named_parameters())
    found = (policy.model.get_input_embeddings(), policy.model.get_output_embeddings())
    text = [table.token_adapter.base_layer.weight[: policy.sids.base] for table in found]
    return list(zip(text, (own[name].detach() for name in policy.sid_names()), strict=False))


@EITHER
def test_a_code_starts_at_the_tables_mean_and_from_there_where_its_titles_differ_from_others(
    tmp_path: Path, catalog: Catalog, tied: bool
) -> None:
    policy, _ = built(tmp_path, catalog, tied)
    found = tables(policy)
    assert len(found) == (1 if tied else 2)
    codes = [(level, code) for level in range(3) for code in range(4)]
    for text_TD, rows_CD in found:
        said: list[Tensor] = []
        for level, code in codes:
            under = (catalog.codes_NL[:, level] == code).nonzero().flatten().tolist()
            words = [int(word[1:]) + 1 for item in under for word in TITLES[item].split()]
            said.append(text_TD[words].mean(0))
        own_CD = torch.stack(said) - torch.stack(said).mean(0)
        for (level, code), own_D in zip(codes, own_CD, strict=True):
            away_D = rows_CD[policy.sids.offsets[level] + code] - text_TD.mean(0)
            torch.testing.assert_close(away_D / away_D.norm(), own_D / own_D.norm())
        spread = 0.5 * float(text_TD.std(0).norm())
        assert float((rows_CD - text_TD.mean(0)).norm(dim=-1).mean()) == pytest.approx(spread, rel=0.1)


def test_titles_that_share_most_of_their_words_do_not_make_the_codes_alike(tmp_path: Path, catalog: Catalog) -> None:
    path = str(tiny_pretrained(tmp_path, tied=True))
    settings = PolicyConfig(kind="pretrained", path=path, items=WITHOUT_ROWS)
    titles = [f"{'w1 w2 w3 w4 w5 w6 ' * 5}w{i}" for i in range(20)]
    policy, _ = build(settings, catalog, max_history=4, seed=0, titles=titles)
    table, rows = policy.sid_tables()[0]
    away_CD = torch.nn.functional.normalize(table.detach()[rows] - table.detach()[rows].mean(0), dim=-1)
    between_CC = (away_CD @ away_CD.T).fill_diagonal_(0)
    assert float(between_CC.max()) < 0.99 and float(between_CC.mean()) < 0.1


def test_rows_of_zeros_that_pad_a_vocabulary_do_not_shrink_the_sid_rows(tmp_path: Path, catalog: Catalog) -> None:
    from transformers import AutoModelForCausalLM

    path = tiny_pretrained(tmp_path / "lm", tied=True)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.get_input_embeddings().weight[8:] = 0
    model.save_pretrained(path)
    for sid_init in ("text", "mean", "random"):
        settings = PolicyConfig.model_validate({"kind": "pretrained", "path": str(path), "sid_init": sid_init})
        policy, _ = build(settings, catalog, max_history=4, seed=0, titles=["w1 w2"] * 20)
        table, rows = policy.sid_tables()[0]
        assert (table.detach()[rows].norm(dim=-1) > 0.01).all()


def test_rows_that_start_at_zero_are_seen_to_learn(tmp_path: Path, catalog: Catalog) -> None:
    policy, _ = built(tmp_path / "lm", catalog, tied=True)
    table, rows = policy.sid_tables()[0]
    with torch.no_grad():
        table[rows] = 0
    check = EmbeddingUpdateCheck(policy)
    with torch.no_grad():
        table[rows] += 0.1
    check.require_changed(dict(policy.snapshot(1).tensors), "")


@pytest.mark.parametrize("sid_init", ["mean", "random"])
def test_other_starts_keep_the_scale_of_the_table(tmp_path: Path, catalog: Catalog, sid_init: str) -> None:
    policy, _ = built(tmp_path, catalog, tied=False, sid_init=sid_init)
    for text_TD, rows_CD in tables(policy):
        typical = float(text_TD.norm(dim=-1).median())
        assert 0.3 * typical < float(rows_CD.norm(dim=-1).median()) < 1.1 * typical
        assert len(rows_CD.unique(dim=0)) == len(rows_CD)


@EITHER
def test_logits_of_levels_and_of_the_vocabulary_are_those_of_the_model(
    tmp_path: Path, catalog: Catalog, tied: bool
) -> None:
    policy, prompts = built(tmp_path, catalog, tied)
    policy.eval()
    tokens_BP, _ = prompts.encode([[1, 2, 3]])
    positions_BP = torch.arange(tokens_BP.shape[1])[None]
    with torch.no_grad():
        causal = torch.ones(tokens_BP.shape[1], tokens_BP.shape[1], dtype=torch.bool).tril()[None, None]
        hidden_BPD = policy.hidden(tokens_BP, positions_BP, causal)
        logits = policy.model(input_ids=tokens_BP).logits
        torch.testing.assert_close(policy.vocabulary_logits(hidden_BPD), logits)
        for level in range(3):
            start = policy.sids.base + policy.sids.offsets[level]
            torch.testing.assert_close(policy.level_logits(hidden_BPD, level), logits[..., start : start + 4])


def run(policy: Model, prompts: Prompts, catalog: Catalog, directory: Path, lr: float) -> SftTrainer:
    rows = pa.table({"history": [[i, i + 1] for i in range(16)], "target": [i + 2 for i in range(16)]})
    settings = Sft(example_format="rows", epochs=3, lr=lr, batch_size=8, micro_batch=4, warmup=0.0)
    return SftTrainer(
        policy,
        SftLoss(prompts, catalog),
        Epochs(RowExamples(rows), 8, seed=0),
        settings,
        seed=0,
        accelerator=Accelerator(cpu=True),
        checkpoints=DirectoryCheckpoints(directory / "checkpoints"),
        validate=lambda policy: {"ndcg@10": 0.0},
    )


@EITHER
def test_training_moves_the_rows_of_every_table(tmp_path: Path, catalog: Catalog, tied: bool) -> None:
    policy, prompts = built(tmp_path, catalog, tied)
    before = [rows_CD.clone() for _, rows_CD in tables(policy)]
    state = run(policy, prompts, catalog, tmp_path, lr=1e-2).run()
    after = [state.best[name] for name in policy.sid_names()]
    assert len(before) == len(after) == (1 if tied else 2)
    assert all((old - new).norm(dim=-1).min() > 0 for old, new in zip(before, after, strict=True))


def test_rows_that_stay_are_refused_and_weight_decay_alone_is_no_learning(tmp_path: Path, catalog: Catalog) -> None:
    policy, prompts = built(tmp_path, catalog, tied=False)
    with pytest.raises(InputError, match=r"none of the 12 SID rows.*raise learning\.sft\.lr=1e-12"):
        run(policy, prompts, catalog, tmp_path, lr=1e-12).run()
    watch = EmbeddingUpdateCheck(policy)
    shorter = {name: 0.9 * tensor for name, tensor in policy.snapshot(0).tensors.items()}
    with pytest.raises(InputError, match="none of the 12 SID rows"):
        watch.require_changed(shorter, "")


def test_frozen_rows_are_refused_before_training(tmp_path: Path, catalog: Catalog) -> None:
    policy, _ = built(tmp_path, catalog, tied=False)
    dict(policy.model.named_parameters())[policy.sid_names()[1]].requires_grad_(False)
    with pytest.raises(InputError, match=r"not trainable.*must require gradients"):
        EmbeddingUpdateCheck(policy)


def test_a_new_policy_of_a_job_starts_from_the_titles_of_its_data(tmp_path: Path) -> None:
    path, shop = tiny_pretrained(tmp_path / "model", tied=True), chain_shop(tmp_path / "shop")
    items = pq.read_table(shop / "items.parquet")
    words = pa.array([f"w{i}" for i in range(len(items))])
    pq.write_table(items.set_column(items.column_names.index("title"), "title", words), shop / "items.parquet")
    config = tiny_config(
        tmp_path / "storage",
        shop,
        "policy.kind=pretrained",
        f"policy.path={path}",
        "learning.sft.example_format=rows",
        "sid.quantizer=title",
    )
    job = RunSpec(config, made(config, "prepare").path, made(config, "assign").path, tmp_path)
    policy, _, catalog = job.build()
    other, _ = build(config.policy, catalog, max_history=5, seed=0)
    name = policy.sid_names()[0]
    assert not torch.equal(policy.trainable()[name], other.trainable()[name])
