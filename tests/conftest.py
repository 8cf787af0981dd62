from collections.abc import Iterator

import pytest

from cluster.session import configure_process
from genrec.config import Config


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local cluster for the whole session: two on one host disturb each other."""
    configure_process(Config())
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=128 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
