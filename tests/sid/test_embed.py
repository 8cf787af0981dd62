"""Item text to vectors: exact padding, one deterministic file per shard, no item without text."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from genrec.config import Embed
from genrec.data.shards import missing_shards, shard_path
from genrec.data.tables import ITEMS
from genrec.errors import InputError
from genrec.sid.embed import item_text, item_texts, make_embedder
from genrec.sid.encoders import CausalEncoder, SentenceEncoder, resolve_model
from genrec.sid.vectors import VectorFiles, check_vectors, write_vectors

WORDS = ["oat", "milk", "whole", "bread", "rye", "wheat", "tea", "green", "black", "coffee", "beans", "red", "wine"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    """A two-layer causal LM with random weights and a word tokenizer."""
    path = tmp_path_factory.mktemp("lm")
    vocabulary = {word: row for row, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    Qwen3Model(config).save_pretrained(path)
    return path


def write_items(directory: Path, titles: list[str], **columns: list) -> Path:
    n = len(titles)
    table = {
        "item": pa.array(range(n), pa.int32()),
        "id": [f"sku{row}" for row in range(n)],
        "title": titles,
        "description": columns.get("description", [""] * n),
        "brand": columns.get("brand", [""] * n),
        "categories": pa.array(columns.get("categories", [[]] * n), pa.list_(pa.string())),
        "first_seen": pa.nulls(n, pa.int64()),
    }
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).cast(ITEMS), directory / "items.parquet")
    return directory


def random_titles(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def causal(path: Path, pooling: str, batch_size: int = 4) -> CausalEncoder:
    return CausalEncoder(str(path), pooling=pooling, max_tokens=16, batch_size=batch_size, device="cpu")


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_padded_text_gets_the_vector_that_it_gets_alone(language_model, pooling):
    texts = random_titles(9)
    together = causal(language_model, pooling).encode(texts)
    alone = np.concatenate([causal(language_model, pooling, 1).encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_pooling_is_that_of_the_models_last_hidden_states(language_model):
    tokens = torch.tensor([[WORDS.index(word) + 1 for word in ("oat", "milk", "tea")]])
    states = Qwen3Model.from_pretrained(language_model)(tokens).last_hidden_state[0].detach()
    for pooling, state in (("mean", states.mean(0)), ("last", states[-1]), ("cls", states[0])):
        vector = causal(language_model, pooling).encode(["oat milk tea"])[0]
        np.testing.assert_allclose(vector, (state / state.norm()).numpy(), atol=1e-6)


def test_text_beyond_max_tokens_is_not_read(language_model):
    long = " ".join(["milk"] * 16)
    vectors = causal(language_model, "mean").encode([long, f"{long} coffee beans"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_shard_files_do_not_depend_on_the_order_of_work_or_on_a_kill(language_model, tmp_path):
    data = write_items(tmp_path / "data", random_titles(23))
    settings = Embed(model=str(language_model), kind="causal", shard_items=8, batch_size=3)
    for out, order in ((tmp_path / "a", (0, 1, 2)), (tmp_path / "b", (2, 0))):
        work = make_embedder(data, out, settings, "cpu", 1)
        for shard in order:
            work(shard)
    assert missing_shards([tmp_path / "b"], 23, 8) == [1]
    make_embedder(data, tmp_path / "b", settings, "cpu", 1)(1)
    assert missing_shards([tmp_path / "b"], 23, 8) == []
    for shard in range(3):
        assert shard_path(tmp_path / "a", shard).read_bytes() == shard_path(tmp_path / "b", shard).read_bytes()
    assert VectorFiles(tmp_path / "a").read().shape == (23, 16)


def test_the_packaged_sentence_model_gives_similar_texts_similar_vectors():
    encoder = SentenceEncoder("minilm", max_tokens=64, batch_size=8, device="cpu")
    milk, oat, drill = encoder.encode(["whole milk", "oat milk, unsweetened", "cordless hammer drill 18V"])
    assert milk.dtype == np.float32 and milk @ oat > milk @ drill + 0.2


def test_the_alias_names_a_directory_and_a_missing_model_is_refused():
    assert (Path(resolve_model("minilm")) / "modules.json").is_file()
    with pytest.raises(InputError, match="no directory with a model"):
        SentenceEncoder("./no-such-model", max_tokens=8, batch_size=1, device="cpu")


def test_an_items_text_is_its_non_empty_fields_in_order():
    row = {"title": "Oat  milk", "brand": "", "categories": ["Grocery", "Drinks"], "description": None}
    assert item_text(row, ("title", "brand", "categories", "description")) == "Oat milk\ncategories: Grocery > Drinks"
    assert item_text(row, ("description",)) == "Oat milk\ncategories: Grocery > Drinks"


def test_items_without_any_text_are_counted_and_refused(tmp_path):
    data = write_items(tmp_path, ["tea", "", ""], brand=["", "", "Acme"])
    with pytest.raises(InputError, match=r"1 of 3 items have no text.*, e\.g\. \["):
        item_texts(pq.read_table(data / "items.parquet"), ("title",))


def test_a_field_that_is_no_column_is_refused(tmp_path):
    data = write_items(tmp_path, ["tea"])
    with pytest.raises(InputError, match="colour"):
        item_texts(pq.read_table(data / "items.parquet"), ("title", "colour"))


def test_vectors_are_read_by_item_rows_over_file_borders(tmp_path):
    vectors = np.arange(20, dtype=np.float32).reshape(10, 2) + 1
    for shard in range(3):
        write_vectors(vectors[shard * 4 : shard * 4 + 4], shard * 4, shard_path(tmp_path, shard))
    files = VectorFiles(tmp_path)
    assert (len(files), files.width) == (10, 2)
    np.testing.assert_array_equal(files.read(3, 9), vectors[3:9])
    np.testing.assert_array_equal(files.read(), vectors)


def test_shards_of_other_items_are_refused(tmp_path):
    write_vectors(np.ones((4, 2), np.float32), 4, shard_path(tmp_path, 0))
    with pytest.raises(InputError, match="must count 0, 1"):
        VectorFiles(tmp_path).read()


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "infinite"), (0.0, "only zeros")])
def test_vectors_that_cannot_be_placed_are_refused_by_name(value, message):
    vectors = np.ones((5, 3), np.float32)
    vectors[2] = value
    with pytest.raises(InputError, match=rf"1 of 5 .*{message}.*\[102\]"):
        check_vectors(vectors, start=100)
