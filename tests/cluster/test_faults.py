"""What dies, and what comes out all the same: rollout actors, the learner's worker, a node, the disk."""

import os
import pickle
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.pipeline import made
from support.synthetic import chain_shop, tiny_config

from cluster.stages.grpo import grpo_loop
from cluster.train import RayCheckpoints, RunSpec
from genrec.data.readers import read_queries
from genrec.data.tables import to_queries
from genrec.errors import InputError
from genrec.learning.checkpoints import DirectoryCheckpoints, TrainingState
from genrec.learning.rewards import RewardContext, RewardFunction, active_terms
from genrec.learning.rl.learner import GrpoLearner
from genrec.learning.rl.loop import train_async
from genrec.learning.rl.rollout import LocalRollouts
from genrec.types import Query, Snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    shop = chain_shop(tmp_path_factory.mktemp("shop"))
    config = tiny_config(tmp_path_factory.mktemp("storage"), shop, "learning.sft.epochs=3")
    paths = [made(config, stage).path for stage in ("prepare", "assign", "sft")]
    return RunSpec(config, paths[0], paths[1], tmp_path_factory.mktemp("out"), start=paths[2])


def elsewhere(job: RunSpec, out: Path, **compute: Any) -> RunSpec:
    config = job.config.replace({"compute": job.config.compute.replace(compute)})
    return RunSpec(config, job.data, job.catalog, out, job.start)


def learner_of(job: RunSpec) -> tuple[GrpoLearner, LocalRollouts]:
    policy, prompts, catalog = job.build()
    settings = job.config.learning.rl
    context = RewardContext(catalog.codes_NL, [""] * len(catalog))
    reward = RewardFunction(job.config.rewards, context, active_terms(job.config.rewards))
    learner = GrpoLearner(policy, prompts, catalog.trie, reward, settings, Accelerator(cpu=True))
    return learner, LocalRollouts(policy, prompts, catalog.trie, settings, job.config.seed)


def pid_of(actor: Any) -> int:
    """The process of an actor, which may be starting again."""
    import ray

    while True:
        try:
            return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
        except ray.exceptions.RayActorError:
            time.sleep(0.5)


class KillingRollouts:
    """Rollouts whose actor ``victim`` gets SIGKILL right after the requests of version 1 went out."""

    def __init__(self, rollouts: Any, victim: int) -> None:
        self._rollouts, self._victim, self.killed = rollouts, victim, 0

    def submit(self, queries: Sequence[Query], policy: Snapshot) -> Any:
        if policy.version == 1:
            pid = pid_of(self._rollouts.actors[self._victim])
        ticket = self._rollouts.submit(queries, policy)
        if policy.version == 1:
            os.kill(pid, signal.SIGKILL)
            self.killed += 1
        return ticket

    def collect(self, ticket: Any) -> Any:
        return self._rollouts.collect(ticket)


def test_what_is_judged_is_the_running_mean_of_the_weights_and_a_checkpoint_keeps_it(
    job: RunSpec, tmp_path: Path
) -> None:
    queries = to_queries(read_queries(job.data, "train"))[:16]
    changes = {"learning.rl.ema_decay": 0.75, "learning.rl.lr": 1e-2, "learning.rl.warmup": 0.0}
    averaged = RunSpec(job.config.replace(changes), job.data, job.catalog, job.out, job.start)
    learner, local = learner_of(averaged)
    expected = dict(learner.reference)
    assert learner.ema_snapshot().digest == learner.snapshot().digest
    for _ in train_async(learner, local, lambda step: queries, steps=3, max_staleness=0):
        now = learner.snapshot().tensors
        expected = {name: 0.75 * mean + 0.25 * now[name] for name, mean in expected.items()}
        kept = learner.ema_snapshot()
        assert kept.version == learner.version and kept.digest != learner.snapshot().digest
        for name, mean in expected.items():
            torch.testing.assert_close(kept.tensors[name], mean)
    learner.write(tmp_path, TrainingState(step=3, curve=[{"step": 3.0}]))
    resumed, rollouts = learner_of(averaged)
    resumed.read(tmp_path, TrainingState())
    assert resumed.ema_snapshot().digest == learner.ema_snapshot().digest
    for one, where in ((learner, local), (resumed, rollouts)):
        list(train_async(one, where, lambda step: queries, steps=4, max_staleness=0))
    assert resumed.ema_snapshot().digest == learner.ema_snapshot().digest


@pytest.fixture(scope="module")
def on_ray(job: RunSpec) -> RunSpec:
    return elsewhere(job, job.out, rollout_cpus=0.25, rollout_timeout_s=2.0)


@pytest.fixture(scope="module")
def actors(on_ray: RunSpec, ray_cluster: None) -> list[Any]:
    """Two rollout actors; a test may kill them, but must leave none of them stopped."""
    from cluster.rollouts import start_actors

    return start_actors(on_ray, 2)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_rollout_actor_that_dies_mid_batch_leaves_the_weights_as_they_would_be(
    staleness: int, job: RunSpec, actors: list[Any]
) -> None:
    from cluster.rollouts import RayRollouts

    patient = elsewhere(job, job.out)
    queries = to_queries(read_queries(job.data, "train"))[:32]
    digests = []
    deadly = KillingRollouts(RayRollouts(patient, actors), victim=staleness // 2)
    for chosen in ("here", "there"):
        learner, local = learner_of(job)
        where = local if chosen == "here" else deadly
        list(train_async(learner, where, lambda step: queries, steps=4, max_staleness=staleness))
        digests.append(learner.snapshot().digest)
    assert deadly.killed == 1
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_rollout_actor_that_hangs_is_found_by_its_deadline_and_replaced(
    job: RunSpec, on_ray: RunSpec, actors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import rollout_pool
    from cluster import rollouts as module

    policy, _, _ = job.build()
    queries = to_queries(read_queries(job.data, "train"))[:32]
    rollouts = module.RayRollouts(on_ray, actors)
    pids = [pid_of(actor) for actor in actors]
    expected = rollouts.collect(rollouts.submit(queries, policy.snapshot(0)))
    os.kill(pids[0], signal.SIGSTOP)
    groups = rollouts.collect(rollouts.submit(queries, policy.snapshot(0)))
    for ours, theirs in zip(groups, expected, strict=True):
        assert ours.query == theirs.query
        assert torch.equal(ours.items_G, theirs.items_G) and torch.equal(ours.logp_GL, theirs.logp_GL)
    assert pid_of(actors[0]) != pids[0], "the actor was replaced"
    monkeypatch.setattr(rollout_pool, "TRIES", 1)
    alone = module.RayRollouts(on_ray, actors[1:])
    alone.collect(alone.submit(queries[:1], policy.snapshot(0)))
    os.kill(stopped := pid_of(actors[1]), signal.SIGSTOP)
    try:
        with pytest.raises(InputError, match=r"answered nothing for 2 s.*raise compute\.rollout_timeout_s"):
            alone.collect(alone.submit(queries, policy.snapshot(1)))
        newcomer = module.RayRollouts(on_ray, actors[1:])
        with pytest.raises(InputError, match=r"1 rollout actors answered nothing for 2 s; the cluster has no room"):
            newcomer.collect(newcomer.submit(queries, policy.snapshot(1)))
    finally:
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_rollout_actor_that_cannot_be_built_is_one_message(job: RunSpec, tmp_path: Path) -> None:
    from cluster.rollouts import RayRollouts, start_actors

    broken = replace(elsewhere(job, job.out, rollout_cpus=0.25), start=tmp_path)
    rollouts = RayRollouts(broken, start_actors(broken, 1))
    queries = to_queries(read_queries(job.data, "train"))[:4]
    with pytest.raises(InputError) as found:
        rollouts.collect(rollouts.submit(queries, Snapshot(0, {})))
    assert str(found.value).startswith("a rollout actor could not be built: ") and str(tmp_path) in str(found.value)
    assert "Traceback" not in str(found.value) and "InputError" not in str(found.value)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_begins_with_the_rollout_actors_for_which_there_is_room(job: RunSpec, actors: list[Any]) -> None:
    from cluster.rollouts import RayRollouts, start_actors

    nowhere = elsewhere(job, job.out, rollout_cpus=0.25, rollout_resources={"spot": 1.0}, rollout_timeout_s=20.0)
    absent = start_actors(nowhere, 1)
    queries = to_queries(read_queries(job.data, "train"))[:32]
    policy, _, _ = job.build()
    some, few = RayRollouts(nowhere, [*absent, *actors]), RayRollouts(nowhere, actors)
    groups, expected = (one.collect(one.submit(queries, policy.snapshot(0))) for one in (some, few))
    deadline = time.monotonic() + 60
    while some.up < 2:  # The first may have answered all before the second was looked at.
        assert time.monotonic() < deadline
        some.collect(some.submit(queries, policy.snapshot(0)))
    assert some.up == 2
    assert all(torch.equal(ours.items_G, theirs.items_G) for ours, theirs in zip(groups, expected, strict=True))


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files longer than ``size`` bytes cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_leaves_the_checkpoint_before_it(job: RunSpec, tmp_path: Path) -> None:
    learner, _ = learner_of(job)
    checkpoints = DirectoryCheckpoints(tmp_path)

    def save(step: int) -> None:
        state = TrainingState(step=step)
        checkpoints.save(lambda path: learner.write(path, state), {"step": step})

    save(1)
    for size in (0, 100, 20_000):
        with small_disk(size), pytest.raises(InputError, match=r"could not be written.*the one before it is whole"):
            save(2)
        with checkpoints.latest() as directory:
            assert directory is not None and directory.name == "checkpoint-000000001"
            state = TrainingState()
            learner.read(directory, state)
            assert state.step == 1
    save(2)
    with checkpoints.latest() as directory:
        assert directory is not None and directory.name == "checkpoint-000000002"


def test_a_run_whose_disk_was_full_goes_on_to_the_same_weights(
    job: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name for name in ("whole", "full")]
    for place in places:
        place.mkdir()
    grpo_loop(elsewhere(job, places[0]))
    write = TrainingState.write

    def full(self: TrainingState, *rest: Any) -> None:
        if self.step == 4:
            raise OSError(28, "No space left on device")
        write(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "write", full)
        with pytest.raises(InputError, match="No space left on device"):
            grpo_loop(elsewhere(job, places[1]))
    grpo_loop(elsewhere(job, places[1]))
    weights = [(place / "policy.safetensors").read_bytes() for place in places]
    assert weights[0] == weights[1]


def test_ray_train_checkpoints_that_cannot_be_stored_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    def report(metrics: object, checkpoint: object) -> None:
        raise OSError(28, "No space left on device")

    class Context:
        def get_world_rank(self) -> int:
            return 0

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_context", Context)
    with pytest.raises(InputError, match=r"written to /runs/x \(\[Errno 28\] No space"):
        RayCheckpoints("/runs/x").save(lambda path: None, {"step": 1})


def test_a_snapshot_that_changed_on_its_way_or_is_another_policys_is_refused(job: RunSpec) -> None:
    from cluster.rollouts import RolloutWorker

    threads = torch.get_num_threads()
    worker = RolloutWorker(job)
    torch.set_num_threads(threads)
    queries = to_queries(read_queries(job.data, "train"))[:4]
    good = worker._policy.snapshot(3)
    mailed = pickle.loads(pickle.dumps(good))
    next(iter(mailed.tensors.values())).view(-1)[0] += 1
    with pytest.raises(InputError, match="loaded version 3 with digest"):
        worker.generate(mailed, queries)
    few = dict(list(good.tensors.items())[:2])
    with pytest.raises(InputError, match="bound 2 of its 2 tensors"):
        worker.generate(Snapshot(3, few), queries)
    assert len(worker.generate(good, queries)) == 4


def test_rollouts_of_another_policy_are_refused_on_the_first_update(job: RunSpec) -> None:
    queries = to_queries(read_queries(job.data, "train"))[:8]
    for version in (0, 7):
        learner, local = learner_of(job)
        learner.version = version
        groups = local.collect(local.submit(queries, learner.snapshot()))
        for group in groups:
            group.logp_GL = group.logp_GL - 0.1
        with pytest.raises(InputError, match=r"differ from the learner.s by 0\.1"):
            learner.update(groups)
