"""The word list that SYLLO and the primitives draw from: `lexicon.tsv` and `hypernyms.tsv` beside this file.

Tier 1 is the 120 most frequent words, 2 to 3 syllables each; higher tiers are rarer and longer.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Entry:
    """One word; `synonym`, `antonym` and `etymology` are empty where none is sure."""

    word: str
    syllables: tuple[str, ...]
    tier: int
    part: str
    hypernym: str
    definition: str
    synonym: str
    antonym: str
    etymology: str
    category: str


@lru_cache(maxsize=1)
def lexicon() -> tuple[Entry, ...]:
    """Every word, in file order: tier by tier."""
    categories = dict(line.split("\t") for line in _rows("hypernyms.tsv"))
    return tuple(_entry(line, categories) for line in _rows("lexicon.tsv"))


@lru_cache(maxsize=64)
def words_of(tiers: tuple[int, ...], fewest: int, most: int) -> tuple[Entry, ...]:
    """Words of these tiers with `fewest` to `most` syllables."""
    return tuple(entry for entry in lexicon() if entry.tier in tiers and fewest <= len(entry.syllables) <= most)


def _rows(name: str) -> list[str]:
    return (_FOLDER / name).read_text(encoding="utf-8").splitlines()[1:]


def _entry(line: str, categories: dict[str, str]) -> Entry:
    word, syllables, tier, part, hypernym, definition, synonym, antonym, etymology = line.split("\t")
    return Entry(
        word,
        tuple(syllables.split("-")),
        int(tier),
        part,
        hypernym,
        definition,
        synonym,
        antonym,
        etymology,
        categories[hypernym],
    )
