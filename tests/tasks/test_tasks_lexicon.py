"""Laws of the word list that SYLLO and the primitives stand on."""

import re
from collections import Counter

import pytest

from stokehold.tasks.clues import ALWAYS, KINDS, available, clue_text, solution_count, words_from
from stokehold.tasks.lexicon import Entry, lexicon, words_of

TIERS = range(1, 6)
WORDS = {entry.word: entry for entry in lexicon()}


def test_size_and_tiers() -> None:
    tiers = Counter(entry.tier for entry in lexicon())
    assert len(lexicon()) >= 820
    assert set(tiers) == set(TIERS)
    assert tiers[1] == 120
    assert [entry.tier for entry in lexicon()] == sorted(entry.tier for entry in lexicon())


def test_syllables_join_to_the_word() -> None:
    for entry in lexicon():
        assert "".join(entry.syllables) == entry.word
        assert re.fullmatch("[a-z]+", entry.word)
        assert all(entry.syllables), entry.word
        assert 2 <= len(entry.syllables) <= (3 if entry.tier == 1 else 6), entry.word


def test_higher_tiers_are_longer() -> None:
    means = [sum(len(e.syllables) for e in words_of((tier,), 2, 6)) / len(words_of((tier,), 2, 6)) for tier in TIERS]
    assert means == sorted(means)


def test_nothing_is_said_twice() -> None:
    assert len(WORDS) == len(lexicon())
    assert len({entry.definition for entry in lexicon()}) == len(lexicon())


def test_definitions_are_short() -> None:
    for entry in lexicon():
        assert 2 <= len(entry.definition.split()) <= (4 if entry.tier == 1 else 6), entry.word
        assert entry.definition == entry.definition.strip()


def test_the_first_tier_is_defined_in_few_words() -> None:
    vocabulary = {word for entry in words_of((1,), 2, 3) for word in entry.definition.split()}
    assert len(vocabulary) <= 260


@pytest.mark.parametrize("kind", KINDS)
def test_no_clue_gives_its_word_away(kind: str) -> None:
    for entry in lexicon():
        assert entry.word not in clue_text(entry, kind).lower(), entry


def test_parts_categories_and_opposites() -> None:
    for entry in lexicon():
        assert entry.part in ("noun", "verb", "adjective", "adverb")
        assert entry.hypernym
        assert entry.category
        assert entry.synonym != entry.antonym or not entry.synonym
        if entry.etymology:
            assert entry.etymology[0].isupper(), entry.word


def test_every_level_of_clue_has_words_to_use_it_on() -> None:
    for kind in ("synonym", "antonym", "etymology"):
        assert sum(bool(clue_text(entry, kind)) for entry in words_of((3, 4, 5), 3, 6)) >= 100


def test_a_word_without_the_wanted_clues_falls_back_to_its_first_letter() -> None:
    bare = next(entry for entry in lexicon() if not entry.synonym and not entry.antonym)
    assert available(bare, ("synonym", "antonym")) == (ALWAYS,)
    assert clue_text(bare, ALWAYS) == f"{bare.part}, starts with {bare.word[0]}"


def test_a_second_solution_is_counted() -> None:
    clue: list[tuple[Entry, str]] = [(WORDS["summer"], "hypernym")]
    assert solution_count(clue, Counter(["sum", "mer", "ter"])) == 1
    assert solution_count(clue, Counter(["sum", "mer", "win", "ter"])) == 2
    both = [*clue, (WORDS["winter"], "hypernym")]
    assert solution_count(both, Counter(["sum", "mer", "win", "ter"])) == 2
    assert solution_count([(WORDS["summer"], "definition"), both[1]], Counter(["sum", "mer", "win", "ter"])) == 1


def test_a_second_spelling_is_counted() -> None:
    assert solution_count([(WORDS["summer"], "definition")], Counter(["sum", "mer", "su", "mmer"])) == 2
    assert words_from(Counter(["sum", "mer", "su", "mmer"]), 2) == ["summer", "summer"]


def test_a_tile_is_not_used_more_often_than_it_lies_there() -> None:
    tiles = WORDS["banana"].syllables
    assert solution_count([(WORDS["banana"], "definition")], Counter(tiles)) == 1
    doubled = [(WORDS["mother"], "definition"), (WORDS["father"], "definition")]
    assert solution_count(doubled, Counter(["moth", "er", "fa", "ther"])) == 1
    sisters = [(WORDS["farmer"], "definition"), (WORDS["driver"], "definition")]
    assert solution_count(sisters, Counter(["farm", "driv", "er"])) == 0
    assert solution_count(sisters, Counter(["farm", "driv", "er", "er"])) == 1
