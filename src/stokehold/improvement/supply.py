"""Fresh training problems for one generated file: no problem twice, none held out."""

from collections.abc import Iterable, Iterator

from stokehold.core.errors import StokeholdError
from stokehold.core.identity import content_hash
from stokehold.core.records import Sample
from stokehold.tasks.registry import draw, get_family, identity_of

SEED_HEX = 12
"""Hex digits of a derived seed: files share none by chance, and it stays an integer that JSON keeps exactly."""

ENDLESS = 2**31
"""More problems than any file asks for: the supply draws as long as it is asked."""


class Supply:
    """Draws from the train split of any family and level; `seed` is the file's, and decides every problem."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: set[str | None] = set()
        self._draws: dict[tuple[str, int], Iterator[Sample]] = {}

    def keep_out(self, samples: Iterable[Sample]) -> None:
        """These problems are in the file already."""
        self._seen.update(map(identity_of, samples))

    def take(self, family: str, level: int, count: int) -> list[Sample]:
        """The next `count` problems; fewer when the level has no more, because small spaces do end.

        Raises `NotFoundError` for an unknown family and `UsageError` for an unknown level.
        """
        kind = (family, level)
        if kind not in self._draws:
            get_family(family)
            self._draws[kind] = draw(family, level, ENDLESS, self._derived(family, level), "train")
        found: list[Sample] = []
        while len(found) < count:
            try:
                fresh = next(self._draws[kind])
            except StokeholdError:
                break  # the level is used up: what was found is what there is
            # Levels of a family may overlap; one draw only knows its own.
            if (identity := identity_of(fresh)) not in self._seen:
                self._seen.add(identity)
                found.append(fresh)
        return found

    def _derived(self, family: str, level: int) -> int:
        """Another seed for each file, family and level: files with neighbouring seeds share no problems by design."""
        return int(content_hash("supply", str(self._seed), family, str(level))[:SEED_HEX], 16)
