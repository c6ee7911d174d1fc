"""The config tree: what `describe` writes is read back the same, and every mistake is named with its key."""

import tomllib
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.config import (
    LOCKED_KEYS,
    Config,
    ConfigError,
    Section,
    config_json,
    describe,
    parse_config,
)

TABLES = tuple(Config.model_fields)
KEYS = [(table, key) for table in TABLES for key in type(getattr(Config(), table)).model_fields]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHARES = st.floats(0, 1, exclude_max=True)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.fixed_dictionaries({"base": WORDS, "vocabulary": st.integers(0, 2**40)}),
        "data": st.fixed_dictionaries({"seed": st.integers(-(2**63), 2**63 - 1), "strict": st.booleans()}),
        "training": st.fixed_dictionaries(
            {"learning_rate": st.floats(1e-30, 1e3), "beta2": SHARES, "schedule": st.sampled_from(["wsd", "cosine"])}
        ),
        "evaluation": st.fixed_dictionaries({"suites": st.lists(WORDS, max_size=3), "holdout_share": SHARES}),
        "improvement": st.fixed_dictionaries({"levels": st.lists(st.integers(1, 10), max_size=10)}),
    },
)


@given(TREES)
def test_what_describe_writes_is_read_back_the_same(tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    again = parse_config(tomllib.loads(describe(config)))
    assert again == config
    assert config_json(again) == config_json(config)


@given(TREES, TREES)
def test_equal_settings_and_only_they_print_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = parse_config(one), parse_config(other)
    assert (config_json(a) == config_json(b)) == (a == b)


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config({}) == Config()


@pytest.mark.parametrize("table", TABLES)
def test_every_table_says_what_it_is_for(table: str) -> None:
    assert Config.model_fields[table].description


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_says_what_it_does_in_one_line_of_the_file(table: str, key: str) -> None:
    section: Section = getattr(Config(), table)
    meaning = type(section).model_fields[key].description or ""
    assert meaning.endswith(".")
    assert "\n" not in meaning
    assert f"# {meaning}\n{key} = " in describe(Config()).split(f"[{table}]\n")[1]


@pytest.mark.parametrize(
    ("tree", "key", "nearest"),
    [
        ({"trainin": {}}, "trainin", "training"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "training.learning_rate"),
        ({"training": {"lr": 1}}, "training.lr", "training."),
        ({"evaluation": {"max_tokens": 1}}, "evaluation.max_tokens", "evaluation.max_new_tokens"),
        ({"serve": {"prot": 1}}, "serve.prot", "serve.port"),
        ({"wab": {"port": 1}}, "wab", "web"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tree: dict[str, Any], key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree, "my.toml")
    assert caught.value.what == "unknown key"
    assert caught.value.where == f"my.toml: {key}"
    assert caught.value.fix.startswith(f"did you mean {nearest}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("training", "epochs", 0),
        ("training", "epochs", "many"),
        ("training", "schedule", "linear"),
        ("training", "beta1", 1.0),
        ("training", "learning_rate", -1.0),
        ("evaluation", "holdout_share", 1.0),
        ("evaluation", "equivalence_margin", 0.0),
        ("model", "dtype", "float16"),
        ("data", "max_length", 15),
        ("web", "port", 65536),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key(table: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({table: {key: value}})
    assert caught.value.where == f"stoke.toml: {table}.{key} = {value!r}"


@pytest.mark.parametrize("key", ["learning_rate", "max_grad_norm", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"training.{key}"):
        parse_config({"training": {key: value}})


def test_a_key_of_an_older_release_is_passed_over_and_not_written_again() -> None:
    found = parse_config({"serve": {"max_batch": 16, "port": 1}})
    assert found == parse_config({"serve": {"port": 1}})
    assert "max_batch" not in describe(found)


def test_a_table_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training = 3"):
        parse_config({"training": 3})


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Config().training, "epochs", 2)  # noqa: B010 -- the type checker knows it too


def test_locked_keys_are_keys() -> None:
    assert set(LOCKED_KEYS) <= {f"{table}.{key}" for table, key in KEYS}


def test_choices_are_what_the_file_may_say() -> None:
    schedules = get_args(type(Config().training).model_fields["schedule"].annotation)
    for schedule in schedules:
        assert parse_config({"training": {"schedule": schedule}}).training.schedule == schedule
