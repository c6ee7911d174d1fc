"""Clues to a word, from plain to faint, and how many solutions a set of clues leaves within the lexicon."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from stokehold.tasks.lexicon import Entry, lexicon

KINDS = ("definition", "synonym", "category", "hypernym", "antonym", "etymology", "first_letter")
"""Every kind of clue, in the order of falling strength."""

ALWAYS = "first_letter"
"""The clue every word has, for a word that has none of a level's kinds."""


def clue_text(entry: Entry, kind: str) -> str:
    """The clue as the prompt shows it; empty where the word has none of this kind."""
    match kind:
        case "synonym":
            return f"same as {entry.synonym}" if entry.synonym else ""
        case "category":
            return f"{entry.part} about {entry.category}"
        case "hypernym":
            return f"a kind of {entry.hypernym}"
        case "antonym":
            return f"opposite of {entry.antonym}" if entry.antonym else ""
        case "etymology":
            return f"from {entry.etymology}" if entry.etymology else ""
        case "first_letter":
            return f"{entry.part}, starts with {entry.word[0]}"
        case _:
            return entry.definition


def available(entry: Entry, kinds: Sequence[str]) -> tuple[str, ...]:
    """Those of `kinds` that this word has a clue for; never empty."""
    return tuple(kind for kind in kinds if clue_text(entry, kind)) or (ALWAYS,)


def solution_count(slots: Sequence[tuple[Entry, str]], bank: Mapping[str, int], limit: int = 2) -> int:
    """Ways to fill the slots, each (word, clue kind), with lexicon words that fit their clue; counts up to `limit`."""
    choices = [_candidates(entry, kind, bank) for entry, kind in slots]
    choices.sort(key=len)
    return _count(choices, Counter(bank), frozenset(), limit)


def words_from(bank: Mapping[str, int], blanks: int) -> list[str]:
    """Lexicon words that `blanks` tiles of the bank spell, once for every way to spell them."""
    words = (entry.word for entry in lexicon() if len(entry.syllables) == blanks)
    spelled = [tiles for word in words for tiles in _spellings(word, blanks, bank)]
    return ["".join(tiles) for tiles in spelled if all(bank[tile] >= n for tile, n in Counter(tiles).items())]


def _count(choices: list[list[tuple[str, ...]]], bank: Counter[str], taken: frozenset[str], limit: int) -> int:
    if not choices:
        return 1
    found = 0
    for tiles in choices[0]:
        word = "".join(tiles)
        if word not in taken and all(bank[tile] >= count for tile, count in Counter(tiles).items()):
            bank.subtract(tiles)
            found += _count(choices[1:], bank, taken | {word}, limit - found)
            bank.update(tiles)
        if found >= limit:
            break
    return found


def _candidates(entry: Entry, kind: str, bank: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Tile sequences from the bank that spell a word with this clue in as many tiles as the slot has blanks."""
    blanks = len(entry.syllables)
    rivals = _by_clue()[kind, clue_text(entry, kind), blanks]
    return [tiles for rival in rivals for tiles in _spellings(rival.word, blanks, bank)]


def _spellings(word: str, blanks: int, bank: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    if blanks == 0:
        if not word:
            yield ()
        return
    for tile, count in bank.items():
        if count > 0 and word.startswith(tile):
            yield from ((tile, *rest) for rest in _spellings(word[len(tile) :], blanks - 1, bank))


@lru_cache(maxsize=1)
def _by_clue() -> Mapping[tuple[str, str, int], list[Entry]]:
    """Lexicon words by (clue kind, its text, number of syllables)."""
    index: dict[tuple[str, str, int], list[Entry]] = defaultdict(list)
    for entry in lexicon():
        for kind in KINDS:
            if text := clue_text(entry, kind):
                index[kind, text, len(entry.syllables)].append(entry)
    return index
