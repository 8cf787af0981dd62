"""The digest of a snapshot: any other byte, name or shape of a tensor in it gives another one."""

import pickle

import pytest
import torch

from genrec import types
from genrec.types import Snapshot


@pytest.fixture(params=[5, 1 << 25])
def part_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(types, "DIGEST_BYTES", request.param)
    return request.param


@pytest.mark.usefixtures("part_bytes")
def test_a_digest_tells_every_byte_name_and_cut_apart_and_not_the_order_of_names() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "none": torch.empty(0)}
    digest = Snapshot(0, weights).digest
    assert Snapshot(7, dict(reversed(weights.items()))).digest == digest
    assert pickle.loads(pickle.dumps(Snapshot(0, weights))).digest == digest
    for place in range(6):
        changed = weights["a"].clone()
        changed.view(-1)[place] += 1e-6
        assert Snapshot(0, weights | {"a": changed}).digest != digest
    assert Snapshot(0, {"c": weights["a"], "b": weights["b"], "none": weights["none"]}).digest != digest
    flat = torch.arange(6.0)
    assert Snapshot(0, {"a": flat[:4], "b": flat[4:]}).digest != Snapshot(0, {"a": flat[:2], "b": flat[2:]}).digest
