"""The benchmarks by name: what there is, what each needs, and a run of a small one. In the default suite."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.encoders import CircleEncoder
from support.synthetic import chain_shop, tiny_config

from benchmarks import losses, registry
from benchmarks.harness import Bench, chosen_variants
from cluster.artifacts import Artifact
from cluster.pipeline import STAGES
from genrec.config import Config
from genrec.errors import InputError
from genrec.sid import embed


@pytest.mark.parametrize("name", registry.BENCHMARKS)
def test_every_benchmark_has_a_module_that_says_which_stages_it_needs(name: str) -> None:
    module = registry.module_of(name)
    assert set(module.NEEDS) <= set(STAGES) and callable(module.run)
    assert "\n" not in registry.BENCHMARKS[name]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown benchmark 'tokeniser'; the nearest is 'tokenizers'"):
        registry.run("tokeniser", Config())


def test_an_unknown_variant_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, "bench.variants=[some]")
    with pytest.raises(InputError, match=r"names \['some'\]; wanted: some of \['one', 'two'\]"):
        chosen_variants(config, ("one", "two"))


def test_a_benchmark_is_given_the_artifacts_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Artifact] = {}

    def run(config: Config, artifacts: Mapping[str, Artifact]) -> Bench:
        given.update(artifacts)
        return Bench("losses", {"answer": 42.0}, {"half": 0.5})

    monkeypatch.setattr(losses, "run", run)
    config = tiny_config(tmp_path / "storage", chain_shop(tmp_path / "shop"), "sid.quantizer=title", "sid.cf_weight=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "make_encoder", lambda settings, device: CircleEncoder())
        found = registry.run("losses", config)
    assert list(given) == ["prepare", "embed", "assign"]
    assert all((artifact.path / "manifest.json").is_file() for artifact in given.values())
    assert "answer" in found.table() and "ratio half" in found.table()
    assert '"figures": {"answer": 42.0}' in found.as_json()
