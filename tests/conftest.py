import os

# Before torch and ray are imported. Tests run in several processes, whose tensors are too small for threads;
# Ray Train looks after its workers more often than every 2 s, and starts no process that waits for preemptions.
os.environ.update(OMP_NUM_THREADS="1", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0")
# Clients of the tests' own S3 server need some keys, in the processes of Ray, too.
os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")

from collections.abc import Iterator

import pytest

from cluster.session import configure_process
from genrec.config import Config

pytest_plugins = ["support.s3_server"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with tests on Ray come first and share one process, hence one cluster; each other file has its own."""
    on_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in on_ray)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in on_ray else str(item.path)))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local cluster for the whole session: two on one host disturb each other."""
    configure_process(Config())
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=128 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
