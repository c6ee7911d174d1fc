"""The codebook: frequent canonical subtrees as single tokens `<E000>`…, learned by compression gain, reversible.

`decode(encode(tree)) == tree` for every tree without codes. The version is a hash of the entries: another book, another
version, and texts of one book are never read with another unnoticed when the version travels with them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from stokehold.codec.sexpr import MAX_CODES, Code, CodecError, Form, Tree, lexemes, parse, render
from stokehold.core.errors import IntegrityError
from stokehold.core.identity import short_id

FORMAT = 1
MIN_USES = 2
FORM_LEXEMES = 3
"""Two parentheses and the operator."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """Entry i is what `<E00i>` stands for. `CodecError` for a repeated entry, one that holds codes, or too many."""

    entries: tuple[Form, ...]
    _codes: Mapping[Tree, Code] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_codes", {entry: Code(index) for index, entry in enumerate(self.entries)})
        if len(self._codes) != len(self.entries):
            raise CodecError("a codebook with the same entry twice")
        if any(_holds_code(entry) for entry in self.entries):
            raise CodecError("a codebook entry that holds a code")

    @property
    def version(self) -> str:
        """16 hex characters over the entries in order."""
        return short_id("codebook", str(FORMAT), *map(render, self.entries))

    def encode(self, tree: Tree) -> str:
        """The printing with every outermost known subtree as its code; `CodecError` when it already holds codes."""
        if _holds_code(tree):
            raise CodecError("the tree is encoded already")
        return render(self._shortened(tree))

    def decode(self, text: str) -> Tree:
        """The tree that was encoded; `CodecError` with its position for malformed text or a code of no entry."""
        return parse(text, expand=self._entry)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": self.version, "entries": [render(e) for e in self.entries]})

    @classmethod
    def from_json(cls, text: str) -> "Codebook":
        """`IntegrityError` when it is no codebook, of another format, or its entries are not those of its version."""
        try:
            stored = json.loads(text)
            written, version, entries = stored["format"], stored["version"], [parse(e) for e in stored["entries"]]
            book = cls(tuple(entry for entry in entries if isinstance(entry, Form)))
        except (ValueError, KeyError, TypeError, CodecError) as error:
            raise IntegrityError(f"not a codebook ({type(error).__name__}: {error})") from error
        if written != FORMAT:
            raise IntegrityError(f"codebook of format {written}", fix="use the program that wrote it")
        if book.version != version or len(book.entries) != len(entries):
            raise IntegrityError("codebook entries are not those of its version", str(version), "learn it anew")
        return book

    def _shortened(self, tree: Tree) -> Tree:
        if not isinstance(tree, Form):
            return tree
        code = self._codes.get(tree)
        return Form(tree.op, tuple(self._shortened(arg) for arg in tree.args)) if code is None else code

    def _entry(self, code: Code) -> Tree:
        if code.index >= len(self.entries):
            raise CodecError(f"{render(code)} is not in this codebook of {len(self.entries)}")
        return self.entries[code.index]


@dataclass(frozen=True, slots=True)
class Saving:
    """Tokens of a corpus without and with the codebook."""

    plain: int
    encoded: int

    @property
    def saved(self) -> int:
        return self.plain - self.encoded

    @property
    def share(self) -> float | None:
        """Saved share in (-inf, 1]; None for an empty corpus."""
        return self.saved / self.plain if self.plain else None


def tokens_saved(book: Codebook, corpus: Iterable[Tree], count_tokens: Callable[[str], int] = lexemes) -> Saving:
    """What the book saves on a corpus, by the caller's tokenizer; negative where that does not know the codes."""
    plain = encoded = 0
    for tree in corpus:
        plain += count_tokens(render(tree))
        encoded += count_tokens(book.encode(tree))
    return Saving(plain, encoded)


def learn(corpus: Iterable[Tree], size: int = 256) -> Codebook:
    """At most `size` entries, each the subtree that saves most lexemes given those before it; used twice or more.

    The order of the corpus does not matter. Time is proportional to size times the corpus's distinct subtrees.
    """
    if not 0 <= size <= MAX_CODES:
        raise CodecError(f"a codebook of {size} entries", fix=f"at most {MAX_CODES}")
    subtrees = _Subtrees(corpus)
    chosen: list[int] = []
    while len(chosen) < size:
        best = subtrees.best(frozenset(chosen))
        if best is None:
            break
        chosen.append(best)
    kept = chosen
    while unused := {i for i in kept if subtrees.uses(frozenset(kept))[i] < MIN_USES}:
        kept = [i for i in kept if i not in unused]
    return Codebook(tuple(subtrees.forms[i] for i in kept))


class _Subtrees:
    """Every distinct form of a corpus, numbered so that parts come before what they are part of."""

    def __init__(self, corpus: Iterable[Tree]) -> None:
        self.forms: list[Form] = []
        self._texts: list[str] = []
        self._parts: list[tuple[int, ...]] = []
        self._atoms: list[int] = []
        self._ids: dict[Form, int] = {}
        self._whole: Counter[int] = Counter()
        for tree, times in Counter(corpus).items():
            if _holds_code(tree):
                raise CodecError("a corpus tree that is encoded already")
            if isinstance(tree, Form):
                self._whole[self._add(tree)] += times

    def _add(self, form: Form) -> int:
        known = self._ids.get(form)
        if known is not None:
            return known
        parts = tuple(self._add(arg) for arg in form.args if isinstance(arg, Form))
        self._ids[form] = len(self.forms)
        self.forms.append(form)
        self._texts.append(render(form))
        self._parts.append(parts)
        self._atoms.append(len(form.args) - len(parts))
        return len(self.forms) - 1

    def uses(self, chosen: frozenset[int]) -> list[int]:
        """How often each form is printed or replaced when the chosen ones are: what lies inside a chosen one is not."""
        uses = [self._whole[i] for i in range(len(self.forms))]
        for i in reversed(range(len(self.forms))):
            if i not in chosen:
                for part in self._parts[i]:
                    uses[part] += uses[i]
        return uses

    def best(self, chosen: frozenset[int]) -> int | None:
        """The form whose replacement saves most lexemes now; the lesser printing of two equals."""
        uses, costs = self.uses(chosen), self._costs(chosen)
        gains = (
            (-uses[i] * (costs[i] - 1), self._texts[i], i)
            for i in range(len(self.forms))
            if uses[i] >= MIN_USES and i not in chosen
        )
        return min(gains, default=(0, "", None))[2]

    def _costs(self, chosen: frozenset[int]) -> list[int]:
        costs: list[int] = []
        for i, parts in enumerate(self._parts):
            inner = sum(1 if part in chosen else costs[part] for part in parts)
            costs.append(FORM_LEXEMES + self._atoms[i] + inner)
        return costs


def _holds_code(tree: Tree) -> bool:
    return isinstance(tree, Code) or (isinstance(tree, Form) and any(map(_holds_code, tree.args)))
