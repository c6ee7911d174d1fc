"""SYLLO: what a puzzle promises, and what an answer is worth."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.records import Sample
from stokehold.tasks.clues import KINDS, clue_text, solution_count
from stokehold.tasks.lexicon import lexicon, words_of
from stokehold.tasks.syllo import LEVELS, Syllo, sharing

FAMILY = Syllo()
WORDS = {entry.syllables: entry for entry in lexicon()}
PLACES = st.tuples(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 10))


def bank_of(sample: Sample) -> list[str]:
    line = next(line for line in sample.question[0].content.splitlines() if line.startswith("Syllables: "))
    tiles: list[str] = json.loads(line.removeprefix("Syllables: "))
    return tiles


def reordered(value: Any, rng: random.Random) -> Any:
    """The same JSON with the keys of every object shuffled."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: reordered(item, rng) for key, item in items}
    return [reordered(item, rng) for item in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_a_puzzle_keeps_its_promises(place: tuple[int, int, int]) -> None:
    sample = FAMILY.generate(*place)
    axes, metadata = LEVELS[place[2]], sample.metadata
    entries = [WORDS[tuple(slot)] for slot in metadata["slots"]]
    assert axes.words[0] <= len(entries) <= axes.words[1]
    assert len({entry.word for entry in entries}) == len(entries)
    assert all(entry.tier in axes.tiers for entry in entries)
    assert all(axes.syllables[0] <= len(entry.syllables) <= axes.syllables[1] for entry in entries)
    assert all(kind in (*axes.clues, "first_letter") for kind in metadata["clues"])
    needed = [tile for entry in entries for tile in entry.syllables]
    herrings = metadata["herrings"]
    assert len(set(herrings)) == axes.herrings == len(herrings)
    assert not set(herrings) & set(needed)
    assert Counter(bank_of(sample)) == Counter(needed) + Counter(herrings)
    assert solution_count(list(zip(entries, metadata["clues"], strict=True)), Counter(bank_of(sample))) == 1


@settings(max_examples=40, deadline=None)
@given(PLACES)
def test_the_prompt_shows_each_slot_with_its_blanks_and_its_clue(place: tuple[int, int, int]) -> None:
    sample = FAMILY.generate(*place)
    lines = sample.question[0].content.splitlines()
    assert lines[0] == f"Puzzle {place[1]}"
    slots = zip(sample.metadata["slots"], sample.metadata["clues"], strict=True)
    for number, (slot, kind) in enumerate(slots, 1):
        blanks = " ".join(["___"] * len(slot))
        assert lines[number + 1] == f"{number}. {blanks} - {clue_text(WORDS[tuple(slot)], kind)}"


def test_level_one_is_drawn_from_the_120_most_frequent_words() -> None:
    common = {entry.syllables for entry in words_of((1,), 2, 3)}
    tiles = {tile for syllables in common for tile in syllables}
    assert len(common) == 120
    seen = set()
    for index in range(400):
        metadata = FAMILY.generate(1, index, 1).metadata
        seen |= {tuple(slot) for slot in metadata["slots"]}
        assert set(metadata["herrings"]) <= tiles
        assert set(metadata["clues"]) == {"definition"}
    assert seen == common


def test_words_share_tiles_as_the_level_says() -> None:
    for level, axes in LEVELS.items():
        shares = []
        for index in range(30):
            entries = [WORDS[tuple(slot)] for slot in FAMILY.generate(2, index, level).metadata["slots"]]
            shares.append(sharing(entries) / len(entries))
        mean = sum(shares) / len(shares)
        if axes.overlap == 0:
            assert mean == 0
        else:
            # The smallest share is two words, which is more than asked for where there are only three.
            assert axes.overlap - 0.1 <= mean <= max(axes.overlap + 0.15, 2 / axes.words[0]), level


def test_clues_grow_fainter_and_words_more() -> None:
    strength = [max(KINDS.index(kind) for kind in axes.clues) for axes in LEVELS.values()]
    assert strength == sorted(strength)
    for low, high in zip(list(LEVELS.values()), list(LEVELS.values())[1:], strict=False):
        assert low.words <= high.words
        assert low.overlap <= high.overlap
        assert low.herrings <= high.herrings


@settings(max_examples=40, deadline=None)
@given(PLACES, st.randoms(use_true_random=False), st.sampled_from([None, 0, 1, 4]))
def test_spacing_and_key_order_do_not_matter(
    place: tuple[int, int, int], rng: random.Random, indent: int | None
) -> None:
    sample = FAMILY.generate(*place)
    answer = json.dumps(reordered(json.loads(sample.gold), rng), indent=indent)
    score = FAMILY.verify(sample, f"\n {answer}\n")
    assert score.value == 1.0
    assert score.parts == {"per_word": 1.0, "format": 1.0, "inventory": 1.0}


def damages(gold: dict[str, Any]) -> dict[str, Any]:
    """Wrong answers near the right one, by what is wrong with them."""
    first, *rest = gold["solutions"]

    def with_first(**changes: Any) -> dict[str, Any]:
        return {**gold, "solutions": [{**first, **changes}, *rest]}

    return {
        "lower case": with_first(answer=first["answer"].lower()),
        "another word": with_first(answer=first["answer"] + "S"),
        "syllables turned round": with_first(syllables=[*first["syllables"][::-1], "x"]),
        "syllables joined": with_first(syllables=["".join(first["syllables"])]),
        "number as text": with_first(ans_num="1"),
        "number as float": with_first(ans_num=1.0),
        "number true": with_first(ans_num=True),
        "number too high": with_first(ans_num=99),
        "extra key": with_first(sure=True),
        "one short": {**gold, "solutions": rest},
        "one twice": {**gold, "solutions": [first, *gold["solutions"]]},
        "one too many": {**gold, "solutions": [*gold["solutions"], {**first, "ans_num": 99}]},
        "no list": {**gold, "solutions": {"1": first}},
        "none": {**gold, "solutions": []},
    }


@pytest.mark.parametrize("level", range(1, 11))
def test_a_damaged_answer_is_not_exact(level: int) -> None:
    sample = FAMILY.generate(11, level, level)
    for kind, answer in damages(json.loads(sample.gold)).items():
        score = FAMILY.verify(sample, json.dumps(answer))
        assert score.value == 0.0, kind
        assert score.parts["inventory"] == 1.0, kind


@settings(max_examples=60, deadline=None)
@given(PLACES, st.data())
def test_one_changed_character_of_an_answer_is_wrong(place: tuple[int, int, int], data: st.DataObject) -> None:
    sample = FAMILY.generate(*place)
    end = sample.gold.index('],"inventory_check"')
    spots = [i for i, character in enumerate(sample.gold[:end]) if character.isalnum()]
    at = data.draw(st.sampled_from(spots))
    other = data.draw(st.characters(codec="utf-8", exclude_categories=["Cs"]).filter(lambda c: c != sample.gold[at]))
    assert FAMILY.verify(sample, sample.gold[:at] + other + sample.gold[at + 1 :]).value == 0.0


def test_words_are_credited_one_by_one() -> None:
    sample = next(s for s in (FAMILY.generate(0, i, 3) for i in range(99)) if len(s.metadata["slots"]) == 4)
    gold = json.loads(sample.gold)
    gold["solutions"][2]["answer"] = "NOTHING"
    score = FAMILY.verify(sample, json.dumps(gold))
    assert (score.value, score.parts["per_word"], score.parts["format"]) == (0.0, 0.75, 1.0)
    assert FAMILY.verify(sample, json.dumps({**gold, "solutions": gold["solutions"][::-1]})).parts["per_word"] == 0.75


def test_entries_may_stand_in_any_order() -> None:
    sample = FAMILY.generate(0, 0, 7)
    gold = json.loads(sample.gold)
    gold["solutions"].reverse()
    assert FAMILY.verify(sample, json.dumps(gold)).exact


def test_the_inventory_is_judged_apart() -> None:
    sample = FAMILY.generate(0, 3, 6)
    gold = json.loads(sample.gold)
    check = gold["inventory_check"]
    tile = next(iter(check["used"]))
    wrong = [
        {**check, "total_tiles": check["total_tiles"] + 1},
        {**check, "total_tiles": float(check["total_tiles"])},
        {**check, "used": {**check["used"], tile: 5}},
        {**check, "used": {k: v for k, v in check["used"].items() if k != tile}},
        {**check, "used": list(check["used"])},
        {**check, "unused_tiles": check["unused_tiles"][1:]},
        {**check, "unused_tiles": [*check["unused_tiles"], check["unused_tiles"][0]]},
        {**check, "unused_tiles": [[]]},
        {**check, "status": "OK"},
    ]
    for inventory in wrong:
        score = FAMILY.verify(sample, json.dumps({**gold, "inventory_check": inventory}))
        assert (score.value, score.parts["inventory"], score.parts["format"]) == (1.0, 0.0, 1.0), inventory
    shuffled = {**check, "unused_tiles": check["unused_tiles"][::-1]}
    assert FAMILY.verify(sample, json.dumps({**gold, "inventory_check": shuffled})).parts["inventory"] == 1.0


def test_format_is_judged_apart() -> None:
    sample = FAMILY.generate(0, 3, 2)
    gold = json.loads(sample.gold)
    bare = FAMILY.verify(sample, json.dumps({"solutions": gold["solutions"]}))
    assert (bare.value, bare.parts["format"], bare.parts["inventory"]) == (1.0, 0.0, 0.0)
    extra = FAMILY.verify(sample, json.dumps({**gold, "note": "hello"}))
    assert (extra.value, extra.parts["format"], extra.parts["inventory"]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_an_answer_with_a_number_that_is_not_json_is_no_answer(number: str) -> None:
    sample = FAMILY.generate(0, 3, 2)
    score = FAMILY.verify(sample, sample.gold[:-1] + f',"sure":{number}}}')
    assert (score.value, score.parts["per_word"]) == (0.0, 0.0)
    assert FAMILY.verify(sample, sample.gold[:-1] + ',"sure":1}').value == 1.0


def test_a_herring_that_lies_there_twice_is_counted_twice() -> None:
    sample = FAMILY.generate(0, 0, 2)
    doubled = sample.metadata["herrings"] * 2
    twice = Sample(id="x", messages=sample.messages, metadata={**sample.metadata, "herrings": doubled})
    gold = json.loads(sample.gold)
    assert FAMILY.verify(twice, sample.gold).parts["inventory"] == 0.0
    gold["inventory_check"] |= {"total_tiles": gold["inventory_check"]["total_tiles"] + 1, "unused_tiles": doubled}
    assert FAMILY.verify(twice, json.dumps(gold)).parts["inventory"] == 1.0


def test_identity_ignores_order_and_id_and_minds_the_rest() -> None:
    sample = FAMILY.generate(0, 0, 6)
    metadata = dict(sample.metadata)

    def identity(**changes: Any) -> str:
        return FAMILY.identity(Sample(id="other", messages=(), metadata={**metadata, **changes}))

    here = FAMILY.identity(sample)
    turned = {key: metadata[key][::-1] for key in ("slots", "clues", "herrings")}
    assert identity(**turned, index=999, seed=5, level=9) == here
    assert identity(herrings=metadata["herrings"][1:]) != here
    assert identity(clues=["definition"] * len(metadata["clues"])) != here
    assert identity(slots=[*metadata["slots"][1:], ["au", "di", "ence"]]) != here


def test_bank_and_answer_spell_a_tile_alike() -> None:
    sample = FAMILY.generate(0, 1, 4)
    prompt = sample.question[0].content
    for slot in sample.metadata["slots"]:
        for tile in slot:
            assert f'"{tile}"' in prompt
            assert f'"{tile}"' in sample.gold
    assert f'"answer":"{"".join(sample.metadata["slots"][0]).upper()}"' in sample.gold
