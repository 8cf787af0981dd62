"""Tokenizers compared: every quantizer is measured, and policies are trained on the chosen ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tokenizers
from cluster.artifacts import Artifact
from cluster.stages import sft
from genrec.config import Config
from genrec.config.sid import READABLE
from genrec.errors import InputError
from genrec.evaluation.intervals import over_runs
from genrec.sid import fit, quantizers
from genrec.sid.quantizers import REGISTRY

pytestmark = pytest.mark.benchmark

Circle = tuple[Config, dict[str, Artifact]]
KMEANS = {name: REGISTRY[name] for name in ("rqkmeans", "vq", "rqvae")}


def choose(config: Config, *variants: str) -> Config:
    return config.replace({"bench.variants": variants})


def test_every_quantizer_is_measured_and_the_chosen_ones_have_policies(
    circle: Circle, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs = circle
    chosen = choose(config, "rqkmeans", "random")
    found = tokenizers.run(chosen, inputs)
    about = json.loads((Path(config.storage) / "bench" / "tokenizers" / "tiny.json").read_text())
    assert set(about["variants"]) == {
        *(*REGISTRY, *READABLE),
        *("rqvae_ema", "rqkmeans_text", "rqkmeans_cf", "rqkmeans_fused"),
    }
    for name, one in about["variants"].items():
        assert "refused" not in one, name
        assert one["collisions_after"] == 0 <= one["collisions_before"] < 1, name
        assert len(one["codes_used"]) == len(one["perplexity"]) == len(one["neighbours_of_text"])
        assert one["fit_s"] >= 0 and one["assign_s"] >= 0
        assert (one["error"] is None) == (name in ("random", "title", *READABLE))
    assert about["variants"]["rqkmeans_text"]["error"] == about["variants"]["rqkmeans"]["error"]
    kmeans, random = about["policies"]["rqkmeans"], about["policies"]["random"]
    assert set(kmeans["seeds"]) == {"0", "1"}
    assert kmeans["ndcg@10"] == over_runs([scores["ndcg@10"] for scores in kmeans["seeds"].values()])
    means = [np.mean([scores["hr@10"] for scores in one["seeds"].values()]) for one in (kmeans, random)]
    assert random["hr@10_difference"]["mean"] == pytest.approx(means[1] - means[0])
    assert kmeans["hr@10_difference"] == {"mean": 0, "low": 0, "high": 0}
    assert "| rqkmeans |" in found.table() and "[95 % t interval]" in found.table()
    monkeypatch.setattr(sft, "sft_loop", None)
    monkeypatch.setattr(fit, "make_quantizer", None)
    assert tokenizers.run(chosen, inputs).table() == found.table()


def test_a_variant_that_does_not_exist_or_cannot_be_made_is_named(
    circle: Circle, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs = circle
    with pytest.raises(InputError, match=r"names \['rqkmean'\]; wanted: some of \['rqkmeans', "):
        tokenizers.run(choose(config, "rqkmean"), inputs)
    monkeypatch.setattr(quantizers, "REGISTRY", {"pq": REGISTRY["pq"], "opq": REGISTRY["opq"], **KMEANS})
    wide = config.replace({"name": "wide", "sid.levels": 5})
    found = tokenizers.run(wide, inputs)
    assert "pq is left out: vectors of 4 dimensions cannot be cut into 5 slices" in found.table()
    with pytest.raises(InputError, match="5 slices"):
        tokenizers.run(choose(wide, "pq"), inputs)
