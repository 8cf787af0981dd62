from pathlib import Path

import pytest
from support.synthetic import chain_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log of a small shop, whose users go through the items in their order."""
    return chain_shop(tmp_path_factory.mktemp("shop"))
