"""Families by name, drawing from them, and samples that come back from a file."""

import itertools
import json

import pytest

from stokehold.core.errors import NotFoundError, StokeholdError, UsageError
from stokehold.core.identity import is_holdout
from stokehold.core.records import Message, Sample, Score
from stokehold.tasks.family import LEVELS, Split, first_good
from stokehold.tasks.registry import FAMILIES, PATIENCE, draw, get_family, identity_of, row, verify_answer

NAMES = sorted(FAMILIES)


def parsed_back(sample: Sample) -> Sample:
    """The sample as a reader of its JSONL line would have it: another id, messages and metadata from JSON."""
    stored = json.loads(json.dumps(row(sample)))
    messages = tuple(Message(m["role"], m["content"]) for m in stored["messages"])
    return Sample(id="from-a-file", messages=messages, metadata=stored["metadata"])


def test_the_families_are_those_of_the_reference() -> None:
    assert set(FAMILIES) == {"syllo", "arithmetic", "syllogism", "deduction", "sequence", "primitives"}
    assert all(family.name == name for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_level_names_its_axes(name: str) -> None:
    axes = FAMILIES[name].axes
    assert list(axes) == list(LEVELS)
    assert len({json.dumps(level) for level in axes.values()}) == 10
    assert all(set(level) == set(axes[1]) and len(level) >= 3 for level in axes.values())


def test_an_unknown_family_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean syllogism"):
        get_family("sylogism")
    with pytest.raises(NotFoundError, match="families: syllo"):
        get_family("zzz")


@pytest.mark.parametrize("level", [0, 11, -1])
def test_levels_outside_one_to_ten_are_refused(level: int) -> None:
    with pytest.raises(UsageError, match="levels are 1 to 10"):
        draw("syllo", level, 1, 0, "train")
    for family in FAMILIES.values():
        with pytest.raises(UsageError, match="levels are 1 to 10"):
            family.generate(0, 0, level)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="splits are train and holdout"):
        draw("syllo", 1, 1, 0, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [2, 6, 9])
def test_splits_never_share_a_problem(name: str, level: int) -> None:
    identities = {}
    for split, count in (("train", 40), ("holdout", 6)):
        samples = list(draw(name, level, count, 7, split))
        found = [identity_of(sample) for sample in samples]
        assert len(samples) == count == len(set(found))
        assert all(sample.metadata["split"] == split for sample in samples)
        assert all(is_holdout(identity or "") == (split == "holdout") for identity in found)
        identities[split] = set(found)
    # Another seed draws other problems, and still never one of the other split.
    other = {identity_of(sample) for sample in draw(name, level, 100, 8, "train")}
    assert not other & identities["holdout"]


@pytest.mark.parametrize("name", NAMES)
def test_drawing_more_begins_with_what_drawing_less_gave(name: str) -> None:
    few, many = (list(draw(name, 3, count, 5, "train")) for count in (5, 20))
    assert many[:5] == few


def test_a_space_that_is_used_up_ends_with_what_it_had() -> None:
    drawing = draw("primitives", 1, 10_000, 0, "holdout")
    found: list[str | None] = []
    with pytest.raises(StokeholdError, match="distinct holdout problems"):
        found.extend(identity_of(sample) for sample in drawing)
    # 120 words in three kinds, one in sixteen of them held out.
    assert 8 <= len(found) == len(set(found)) <= 45


def test_a_long_draw_is_not_taken_for_a_space_that_is_used_up() -> None:
    # 300 held-out problems lie among about 4,800 indices, more than the patience of one search.
    samples = list(draw("arithmetic", 3, 300, 0, "holdout"))
    assert len(samples) == 300
    assert samples[-1].metadata["index"] > PATIENCE


def test_drawing_nothing_is_no_error() -> None:
    assert list(draw("syllo", 1, 0, 0, "train")) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "holdout"])
def test_a_sample_read_back_from_a_file_is_the_same_problem(name: str, split: Split) -> None:
    for level in (1, 5, 10):
        for sample in draw(name, level, 2, 3, split):
            again = parsed_back(sample)
            assert identity_of(again) == identity_of(sample)
            assert verify_answer(again, sample.gold) == verify_answer(sample, sample.gold)
            assert verify_answer(again, again.gold).exact


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_json_and_says_where_the_sample_is_from(name: str) -> None:
    sample = get_family(name).generate(4, 9, 7)
    metadata = json.loads(json.dumps(sample.metadata))
    assert metadata == sample.metadata
    assert {key: metadata[key] for key in ("family", "level", "seed", "index", "difficulty")} == {
        "family": name,
        "level": 7,
        "seed": 4,
        "index": 9,
        "difficulty": "hard",
    }
    assert metadata["split"] in ("train", "holdout")
    assert sample.provenance.generator == "family"
    assert [message.role for message in sample.messages] == ["user", "assistant"]


def test_ids_differ_between_places() -> None:
    places = itertools.product(NAMES, (1, 2), (0, 1), (0, 1))
    ids = [get_family(name).generate(seed, index, level).id for name, level, seed, index in places]
    assert len(set(ids)) == len(ids)


def test_samples_of_no_family_have_no_identity_and_no_score() -> None:
    for metadata in ({}, {"family": "nobody"}, {"family": ["syllo"]}, {"family": None}):
        sample = Sample(id="x", messages=(Message("user", "?"), Message("assistant", "!")), metadata=metadata)
        assert identity_of(sample) is None
        assert verify_answer(sample, "!").value is None


BROKEN = [
    None,
    0,
    "",
    "x",
    [],
    [[]],
    [[None]],
    {},
    ["a"],
    [["is"]],
    [["before", "a", "b"]],
    True,
    [["A", "x"]],
    float("nan"),
]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_metadata_is_unscored_never_an_exception(name: str) -> None:
    sample = get_family(name).generate(0, 0, 5)
    own = [key for key in sample.metadata if key not in ("family", "level", "seed", "index", "split", "difficulty")]
    assert own
    for key, value in itertools.product(own, BROKEN):
        damaged = Sample(id="x", messages=sample.messages, metadata={**sample.metadata, key: value})
        assert isinstance(verify_answer(damaged, sample.gold), Score)
    missing = Sample(id="x", messages=sample.messages, metadata={"family": name})
    assert identity_of(missing) is None
    assert verify_answer(missing, sample.gold).value is None


def test_a_search_that_cannot_succeed_ends() -> None:
    with pytest.raises(StokeholdError, match="2000 tries"):
        first_good(lambda: None, "nothing")
