"""The digest of a snapshot: any other byte, name or shape of a tensor in it gives another one."""

import pickle

import pytest
import torch

from genrec import types
from genrec.types import Group, Query, Snapshot


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


def test_a_snapshot_and_a_group_arrive_as_they_were_sent() -> None:
    weights = {
        "a": torch.randn(2, 3).T,
        "b": torch.randn(4).bfloat16(),
        "one": torch.tensor(2.0),
        "none": torch.empty(0),
    }
    arrived = pickle.loads(pickle.dumps(Snapshot(3, weights)))
    assert arrived.version == 3 and list(arrived.tensors) == list(weights)
    for name, tensor in weights.items():
        assert arrived.tensors[name].dtype == tensor.dtype and torch.equal(arrived.tensors[name], tensor)
    query = Query(7, 3, (12, 40), 99, draw=5)
    terms, empty = {"hit": torch.tensor([0.0, 1.0])}, torch.empty(0)
    own = (torch.tensor([1, -1]), torch.ones(2, 3, dtype=torch.long), torch.randn(2, 3), empty)
    group = Group(query, 4, *own, terms, head_G=torch.randn(2), slate=1)
    found = pickle.loads(pickle.dumps(group))
    assert (found.query, found.version, found.slate) == (query, 4, 1)
    assert found.weights_G is None and found.gains_GJ is None and found.prior_G is None
    for name in ("items_G", "codes_GL", "logp_GL", "rewards_G", "head_G"):
        ours, theirs = getattr(found, name), getattr(group, name)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
    assert torch.equal(found.terms["hit"], terms["hit"])
    found.logp_GL += 1.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_weights_lie_once_in_shared_memory_and_are_read_from_there() -> None:
    import ray

    sent = Snapshot(0, {"large": torch.arange(2.0**20), "half": torch.ones(2**20, dtype=torch.bfloat16)})
    kept = ray.put(sent)
    first, second = ray.get(kept), ray.get(kept)
    assert all(torch.equal(first.tensors[name], tensor) for name, tensor in sent.tensors.items())
    assert first.tensors["large"].data_ptr() == second.tensors["large"].data_ptr()
    assert first.digest == sent.digest == Snapshot(0, first.tensors).digest
