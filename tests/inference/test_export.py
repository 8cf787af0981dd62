"""A run as a plain Hugging Face folder: the same log-probabilities, the same beams, and a run again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.served import serve
from support.synthetic import tiny_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.errors import InputError
from genrec.inference.hf_folder.catalog_logits import CatalogLogits, SidSpace
from genrec.inference.hf_folder.export_run import export_run
from genrec.inference.hf_folder.import_run import import_run
from genrec.inference.recommender import Recommender, load
from genrec.policy.decoding.beam import beam

PLAIN = ("policy.items.input=none", "policy.items.head=false")
HISTORIES = [["i1", "i2", "i3"], ["i20"], ["i5", "i9", "i23", "i0", "i4", "i7", "i8"]]
WIDTH = 6


def alone(directory: Path, *overrides: str) -> Recommender:
    return serve(directory, *overrides, priors={"alone": {"weight": 0.0}})["alone"]


def exported(recommender: Recommender, folder: Path) -> Path:
    export_run(recommender, recommender.run.storage / "runs" / "alone", folder)
    return folder


def kinds(directory: Path) -> dict[str, tuple[str, ...]]:
    lm = tiny_pretrained(directory / "lm", tied=True)
    untied = tiny_pretrained(directory / "untied", tied=False)
    pretrained = ("policy.kind=pretrained", "policy.lora.rank=4", *PLAIN)
    return {
        "gpt2": PLAIN,
        "qwen3 with bytes": ("policy.arch=qwen3", "policy.tokenizer=bytes", "policy.sid_tokens=numbered", *PLAIN),
        "adapters": (*pretrained, f"policy.path={lm}"),
        "adapters, untied": (*pretrained, f"policy.path={untied}"),
        "full, question": (*pretrained, f"policy.path={lm}", "policy.finetuning=full", "policy.prompt=question"),
        "rows of items": ("policy.items.mean=false", "policy.items.head=false"),
    }


KINDS = ("gpt2", "qwen3 with bytes", "adapters", "adapters, untied", "full, question", "rows of items")


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_gives_the_policys_beams_and_log_probabilities(tmp_path: Path, kind: str) -> None:
    recommender = alone(tmp_path, *kinds(tmp_path)[kind])
    _stir(recommender)
    folder = exported(recommender, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder)
    space, view = SidSpace(folder), recommender.view
    for history in HISTORIES:
        tokens = space.encode(history)
        told = model.generate(
            tokens,
            logits_processor=[CatalogLogits(space, tokens.shape[1])],
            max_new_tokens=space.levels,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam(
            recommender.policy, *view.prompts.encode([[view.rows[item] for item in history]]), view.trie, WIDTH
        )
        assert [space.item(row) for row in told.sequences] == [view.ids[row] for row in found.items_BW[0].tolist()]
        torch.testing.assert_close(told.sequences_scores, found.logp_BW[0], atol=1e-4, rtol=1e-4)


def _stir(recommender: Recommender) -> None:
    """Weights that differ from their start everywhere, so that a part that is left out shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in recommender.policy.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", ["adapters, untied", "rows and head"])
def test_an_imported_folder_recommends_as_the_run_did(tmp_path: Path, kind: str) -> None:
    recommender = alone(tmp_path, *kinds(tmp_path).get(kind, ()))
    _stir(recommender)
    again = load(import_run(exported(recommender, tmp_path / "out"), tmp_path / "elsewhere"))
    for history in HISTORIES:
        ours, theirs = (one.recommend(history, k=5) for one in (recommender, again))
        assert [item.id for item in ours] == [item.id for item in theirs]
        assert [item.score for item in ours] == pytest.approx([item.score for item in theirs], abs=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default policy: an item of the history is one token with its row, means, and an item head."""
    directory = tmp_path_factory.mktemp("export")
    return exported(alone(directory), directory / "out")


def test_the_card_says_what_a_plain_model_cannot_hold(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "item head" in card and "decaying mean" in card and "ItemKNN prior of" not in card
    assert "24 items" in card and 'license: "other"' in card


def test_the_tokenizer_names_the_tokens_that_prompts_are_made_of(folder: Path) -> None:
    tokenizer, space = AutoTokenizer.from_pretrained(folder), SidSpace(folder)
    tokens = space.encode(["i3", "i4"])[0].tolist()
    assert tokenizer.decode(tokens).replace(" ", "") == "<bos><item_3><item_4>"
    assert tokenizer("<bos> and <item_3><item_4>", add_special_tokens=False)["input_ids"] == tokens
    names = tokenizer.convert_ids_to_tokens(space.tokens_NL[0].tolist())
    assert [name[:3] for name in names] == ["<a_", "<b_", "<c_"]


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from catalog_logits import CatalogLogits, SidSpace
from transformers import AutoModelForCausalLM
space = SidSpace(sys.argv[1])
tokens = space.encode(["i1", "i2"])
found = AutoModelForCausalLM.from_pretrained(sys.argv[1]).generate(
    tokens, logits_processor=[CatalogLogits(space, tokens.shape[1])], max_new_tokens=space.levels,
    num_beams=30, num_return_sequences=24, length_penalty=0.0, eos_token_id=None, do_sample=False,
)
print(len({space.item(row) for row in found} - {None}), "genrec" in sys.modules)
"""


def test_the_folder_serves_the_whole_catalogue_without_genrec(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", ALONE, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=True)
    assert told.stdout.split() == ["24", "False"]


def test_a_folder_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    for name in ("model.safetensors", "genrec/catalog/catalog.json", "items.json"):
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(kept[:-1] + b" ")
        with pytest.raises(InputError, match=f"{name} was changed"):
            import_run(copied, tmp_path / "storage")
        (copied / name).unlink()
        with pytest.raises(InputError, match=f"{name} is missing"):
            import_run(copied, tmp_path / "storage")
        (copied / name).write_bytes(kept)
    about = json.loads((copied / "sid_space.json").read_text())
    for part in about["hashes"]:
        wrong = about | {"hashes": about["hashes"] | {part: "0" * 64}}
        (copied / "sid_space.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=f"the {part} is not the one"):
            import_run(copied, tmp_path / "storage")
    with pytest.raises(InputError, match="no exported policy"):
        import_run(tmp_path, tmp_path / "storage")
    with pytest.raises(InputError, match="name: String should match"):
        import_run(folder, tmp_path / "storage", "two words")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; wanted a directory"):
        import_run(folder, tmp_path / "file")
    with pytest.raises(InputError, match="no directory can be made at /proc/x"):
        import_run(folder, Path("/proc/x"))
    with pytest.raises(InputError, match="the folder /proc/x: no directory can be made"):
        export_run(Recommender.__new__(Recommender), tmp_path, Path("/proc/x"))
    with pytest.raises(InputError, match="holds something already"):
        export_run(Recommender.__new__(Recommender), tmp_path, folder)


def test_a_run_of_an_imported_folder_may_move(tmp_path: Path) -> None:
    recommender = alone(tmp_path, *kinds(tmp_path)["adapters"])
    run = import_run(exported(recommender, tmp_path / "out"), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load(tmp_path / "there" / run.relative_to(tmp_path / "here"))
    assert [one.id for one in moved.recommend(["i1"])] == [one.id for one in recommender.recommend(["i1"])]


def test_layers_in_4_bits_without_adapters_are_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lm = tiny_pretrained(tmp_path / "lm", tied=True, hidden=64)
    options = ("policy.kind=pretrained", f"policy.path={lm}", "policy.finetuning=qlora", *PLAIN)
    recommender = alone(tmp_path, *options, "policy.lora.rank=4", "policy.lora.targets=[q_proj,v_proj]")
    exported(recommender, tmp_path / "out")  # compares the folder's log-probabilities with the policy's


def test_the_same_folder_again_leaves_the_files_of_a_served_run_alone(folder: Path, tmp_path: Path) -> None:
    """A process that serves the run has mapped its trie into memory: a file that is cut there ends the process."""
    run = import_run(folder, tmp_path)
    made = [path for path in (tmp_path / "imported").rglob("*") if path.is_file() and path.parent.name != "policy"]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert {"trie.safetensors", "items.parquet"} <= {path.name for path in made}
    assert import_run(folder, tmp_path) == run
    assert {path: path.stat().st_mtime_ns for path in made} == before
