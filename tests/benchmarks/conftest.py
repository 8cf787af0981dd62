"""A prepared shop whose items lie on a circle, shared by the benchmarks that assign SIDs."""

from collections.abc import Iterator

import pytest
from support.encoders import CircleEncoder
from support.synthetic import chain_shop, tiny_config

from cluster import pipeline
from cluster.artifacts import Artifact
from genrec.config import Config
from genrec.sid import build, embed


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, dict[str, Artifact]]]:
    """The config of the shop, and its prepared data and item vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "make_encoder", lambda settings, device: CircleEncoder())
        patch.setattr(build, "write_page", lambda *page: None)
        settings = ("sid.cf_weight=0", "sid.codebook_size=4", "sid.epochs=5", "bench.items=4", "bench.seeds=2")
        config = tiny_config(tmp_path_factory.mktemp("storage"), chain_shop(tmp_path_factory.mktemp("shop")), *settings)
        yield config, pipeline.run(config, "prepare", "embed")
