"""Whatever is written into a config, its outcome is a ``Config`` or an ``InputError``."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.config import Config, known_keys, load_config, to_yaml
from genrec.errors import InputError

KEYS = sorted(known_keys())
LIMITS = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ODD = ["~", "~nobody/x", "${name}", "${", "???", "2020-13-45", "1e999", "0x", "..", "/", "\0", "[", "{a: 1"]
HOSTILE = ["[" * 5000, "a: &a [*a]", "a: &a {b: *a}", "? [1]\n: 2", "!!python/object:os.system {}"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(ODD)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(KEYS) | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3).map(".".join)


def outcome(files: list[Path], overrides: list[str]) -> Config | None:
    """The config; None where it was refused with a message."""
    try:
        return load_config(files, overrides)
    except InputError as error:
        assert str(error)
        return None


def nested(key: str, value: Any) -> Any:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


@LIMITS
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_a_file_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    outcome([tmp_path / "a.yaml"], [])


@LIMITS
@given(key=keys, value=values)
def test_a_file_with_any_value_at_any_key_and_what_is_accepted_loads_back(key: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(nested(key, value), allow_unicode=True), encoding="utf-8", errors="replace")
    if (config := outcome([file], [])) is not None:
        file.write_text(to_yaml(config), encoding="utf-8")
        assert load_config([file]) == config


@LIMITS
@given(
    overrides=st.lists(
        st.tuples(keys, values).map(lambda pair: f"{pair[0]}={pair[1]}") | st.text(max_size=20), max_size=3
    )
)
def test_any_words_on_the_command_line(overrides: list[str]) -> None:
    outcome([], overrides)


@LIMITS
@given(key=keys, value=values)
def test_any_change_of_a_config(key: str, value: Any) -> None:
    try:
        assert isinstance(Config().replace({key: value}), Config)
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize("text", HOSTILE)
def test_yaml_that_is_deep_circular_or_hostile(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert outcome([tmp_path / "a.yaml"], []) is None
