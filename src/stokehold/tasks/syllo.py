"""SYLLO, syllable word recovery: words from a shuffled bank of syllables, each with a clue.

`value` is 1 when every entry of `solutions` is right, else 0; `per_word`, `format` and `inventory` stand apart. Every
puzzle has one solution within the lexicon. Bank and answer spell a tile alike (`"tile",`), so that a byte-level BPE
cuts it into the same tokens in both places.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks.answers import compact, is_int, read_object
from stokehold.tasks.clues import available, clue_text, solution_count
from stokehold.tasks.family import difficulty, first_good, make_sample, stream, strings
from stokehold.tasks.lexicon import Entry, words_of

RULES = "Build each word from the syllables, each used at most once."
CONTRACT = "Answer in JSON: solutions, inventory_check."


@dataclass(frozen=True, slots=True)
class Axes:
    """What makes a level hard. Ranges are inclusive; `overlap` is the share of words that share a tile with another."""

    words: tuple[int, int]
    syllables: tuple[int, int]
    tiers: tuple[int, ...]
    overlap: float
    herrings: int
    clues: tuple[str, ...]


LEVELS: Mapping[int, Axes] = {
    1: Axes((1, 2), (2, 3), (1,), 0.0, 1, ("definition",)),
    2: Axes((2, 3), (2, 3), (1, 2), 0.0, 1, ("definition",)),
    3: Axes((3, 4), (2, 3), (1, 2), 0.2, 2, ("definition",)),
    4: Axes((4, 6), (2, 4), (1, 2, 3), 0.2, 2, ("definition", "synonym")),
    5: Axes((4, 6), (2, 4), (1, 2, 3), 0.3, 3, ("synonym", "category")),
    6: Axes((4, 6), (2, 4), (2, 3, 4), 0.4, 3, ("synonym", "category")),
    7: Axes((7, 10), (3, 5), (2, 3, 4), 0.5, 4, ("category", "hypernym")),
    8: Axes((7, 10), (3, 5), (2, 3, 4, 5), 0.6, 4, ("hypernym", "antonym")),
    9: Axes((7, 10), (3, 6), (3, 4, 5), 0.7, 5, ("antonym", "etymology", "first_letter")),
    10: Axes((7, 10), (4, 6), (3, 4, 5), 0.8, 6, ("antonym", "etymology", "first_letter")),
}


class Syllo:
    """The family; see the module."""

    name = "syllo"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        words, clues, herrings = first_good(lambda: _puzzle(rng, LEVELS[level]), f"syllo level {level}")
        slots = [list(entry.syllables) for entry in words]
        bank = [tile for slot in slots for tile in slot] + herrings
        rng.shuffle(bank)
        lines = [f"{n}. {_blanks(entry)} - {clue_text(entry, kind)}" for n, (entry, kind) in _numbered(words, clues)]
        question = "\n".join([f"Puzzle {index}", RULES, *lines, f"Syllables: {compact(bank)}", CONTRACT])
        problem = {"difficulty": difficulty(level), "slots": slots, "clues": clues, "herrings": herrings}
        return make_sample(self, (seed, index, level), question, compact(solution(slots, bank)), problem)

    def verify(self, sample: Sample, answer: str) -> Score:
        slots, _, herrings = _problem(sample)
        given = read_object(answer)
        parts = {"per_word": 0.0, "format": 0.0, "inventory": 0.0}
        if given is None:
            return Score(0.0, parts)
        entries = given.get("solutions")
        entries = entries if isinstance(entries, list) else []
        right = sum(_is_solved(entries, number, slot) for number, slot in enumerate(slots, 1))
        parts["per_word"] = right / len(slots)
        parts["format"] = float(_is_well_formed(given, len(slots)))
        parts["inventory"] = float(_is_inventory(given.get("inventory_check"), slots, herrings))
        return Score(float(right == len(slots) == len(entries)), parts)

    def identity(self, sample: Sample) -> str:
        """The words, each with its clue kind, and the herrings; neither order, id nor wording counts."""
        slots, clues, herrings = _problem(sample)
        words = sorted("-".join(slot) + "=" + kind for slot, kind in zip(slots, clues, strict=True))
        return f"syllo|{','.join(words)}|{','.join(sorted(herrings))}"


def _problem(sample: Sample) -> tuple[list[list[str]], list[str], list[str]]:
    """(syllables of each slot, clue kinds, herrings) from the metadata; ValueError where it holds no puzzle."""
    metadata = sample.metadata
    slots = [strings(slot) for slot in metadata["slots"]]
    if not slots:
        raise ValueError("a puzzle without slots")
    return slots, strings(metadata["clues"]), strings(metadata["herrings"])


def solution(slots: Sequence[Sequence[str]], bank: Sequence[str]) -> dict[str, Any]:
    """The answer object of a puzzle; `unused_tiles` in bank order, `used` in the order of first use."""
    used = Counter(tile for slot in slots for tile in slot)
    spare = Counter(bank) - used
    unused = []
    for tile in bank:
        if spare[tile] > 0:
            spare[tile] -= 1
            unused.append(tile)
    solutions = [_entry_of(number, slot) for number, slot in enumerate(slots, 1)]
    check = {"total_tiles": len(bank), "used": dict(used), "unused_tiles": unused, "status": "ok"}
    return {"solutions": solutions, "inventory_check": check}


def _puzzle(rng: random.Random, axes: Axes) -> tuple[list[Entry], list[str], list[str]] | None:
    """(words, clue kind of each, herrings); None where another solution exists within the lexicon."""
    words = _choose_words(rng, axes)
    clues = [rng.choice(available(entry, axes.clues)) for entry in words]
    needed = {tile for entry in words for tile in entry.syllables}
    herrings: list[str] = []
    while len(herrings) < axes.herrings:
        tile = rng.choice(rng.choice(words_of(axes.tiers, *axes.syllables)).syllables)
        if tile not in needed and tile not in herrings:
            herrings.append(tile)
    bank = Counter(tile for entry in words for tile in entry.syllables) + Counter(herrings)
    return (words, clues, herrings) if solution_count(list(zip(words, clues, strict=True)), bank) == 1 else None


def _choose_words(rng: random.Random, axes: Axes) -> list[Entry]:
    """Distinct words; about `overlap` of them share a tile with another, none where `overlap` is 0."""
    pool = words_of(axes.tiers, *axes.syllables)
    order = rng.sample(pool, len(pool))
    count = rng.randint(*axes.words)
    wanted = round(axes.overlap * count)
    chosen = [order.pop()]
    while len(chosen) < count:
        share = sharing(chosen) < wanted
        tiles = {tile for entry in chosen for tile in entry.syllables}
        fits = (i for i, entry in enumerate(order) if tiles.isdisjoint(entry.syllables) != share)
        chosen.append(order.pop(next(fits, 0)))
    rng.shuffle(chosen)
    return chosen


def sharing(words: Sequence[Entry]) -> int:
    """How many of the words share a tile with another of them."""
    holders = Counter(tile for entry in words for tile in set(entry.syllables))
    return sum(any(holders[tile] > 1 for tile in entry.syllables) for entry in words)


def _numbered(words: Sequence[Entry], clues: Sequence[str]) -> list[tuple[int, tuple[Entry, str]]]:
    return list(enumerate(zip(words, clues, strict=True), 1))


def _blanks(entry: Entry) -> str:
    return " ".join("___" for _ in entry.syllables)


def _entry_of(number: int, slot: Sequence[str]) -> dict[str, Any]:
    return {"ans_num": number, "syllables": list(slot), "answer": "".join(slot).upper()}


def _is_solved(entries: list[Any], number: int, slot: Sequence[str]) -> bool:
    """Exactly one entry has this number, and it is the right one."""
    named = [e for e in entries if isinstance(e, dict) and is_int(e.get("ans_num"), number)]
    return len(named) == 1 and named[0] == _entry_of(number, slot)


def _is_well_formed(given: dict[str, Any], count: int) -> bool:
    """The object has the shape of the contract, right or wrong."""
    if set(given) != {"solutions", "inventory_check"} or not isinstance(given["inventory_check"], dict):
        return False
    if set(given["inventory_check"]) != {"total_tiles", "used", "unused_tiles", "status"}:
        return False
    entries = given["solutions"]
    return isinstance(entries, list) and len(entries) == count and all(_is_entry(entry) for entry in entries)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"ans_num", "syllables", "answer"}
        and type(entry["ans_num"]) is int
        and isinstance(entry["answer"], str)
        and isinstance(entry["syllables"], list)
        and all(isinstance(tile, str) for tile in entry["syllables"])
    )


def _is_inventory(check: Any, slots: Sequence[Sequence[str]], herrings: Sequence[str]) -> bool:
    """The count of every tile is right, and the unused tiles are the herrings, with multiplicity."""
    if not isinstance(check, dict) or set(check) != {"total_tiles", "used", "unused_tiles", "status"}:
        return False
    used, unused = check["used"], check["unused_tiles"]
    if not isinstance(used, dict) or not isinstance(unused, list) or not all(isinstance(t, str) for t in unused):
        return False
    wanted = Counter(tile for slot in slots for tile in slot)
    return (
        is_int(check["total_tiles"], wanted.total() + len(herrings))
        and set(used) == set(wanted)
        and all(is_int(used[tile], count) for tile, count in wanted.items())
        and Counter(unused) == Counter(herrings)
        and check["status"] == "ok"
    )
