"""The typed languages: which operators exist, how many arguments of which kind they take, and their canonical form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from stokehold.codec.arithmetic import canonical_arithmetic
from stokehold.codec.sexpr import CodecError, Form, Number, Symbol, Tree, parse, render
from stokehold.codec.syllogism import canonical_syllogism


class Kind(StrEnum):
    NUMBER = "number"
    EQUATION = "equation"
    TERM = "term"
    PROPOSITION = "proposition"
    PREMISES = "premises"
    ARGUMENT = "argument"
    VERDICT = "verdict"


VERDICTS = ("valid", "invalid")


@dataclass(frozen=True, slots=True)
class Signature:
    """`arguments` in order; with `more`, the last kind may repeat."""

    result: Kind
    arguments: tuple[Kind, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """One language. `roots` are the kinds that a whole expression may have."""

    name: str
    signatures: Mapping[str, Signature]
    roots: tuple[Kind, ...]
    rules: Callable[[Tree], Tree]

    def form(self, op: str, args: tuple[Tree, ...]) -> Form:
        """The typed constructor: `CodecError` for an unknown operator, a wrong count or an argument of another kind."""
        signature = self.signatures.get(op)
        if signature is None:
            raise CodecError(f"{self.name} has no operator {op!r}", fix=f"one of {', '.join(self.signatures)}")
        wanted = len(signature.arguments)
        if len(args) < wanted or (len(args) > wanted and not signature.more):
            least = "at least " if signature.more else ""
            raise CodecError(f"{op!r} takes {least}{wanted} arguments, not {len(args)}")
        kinds = signature.arguments + signature.arguments[-1:] * (len(args) - wanted)
        for number, (arg, kind) in enumerate(zip(args, kinds, strict=True), 1):
            if not self.fits(arg, kind):
                raise CodecError(f"argument {number} of {op!r} must be a {kind}: {_short(arg)}")
        return Form(op, args)

    def fits(self, tree: Tree, kind: Kind) -> bool:
        """Whether the root of the tree is of this kind; a form's own arguments were checked when it was made."""
        match tree:
            case Number():
                return kind is Kind.NUMBER
            case Symbol(name):
                return kind is Kind.TERM or (kind is Kind.VERDICT and name in VERDICTS)
            case Form(op):
                return op in self.signatures and self.signatures[op].result is kind
        return False

    def parse(self, text: str) -> Tree:
        """A whole, well-typed expression; `CodecError` with the position of what is not."""
        tree = parse(text, make=self.form)
        if not any(self.fits(tree, kind) for kind in self.roots):
            raise CodecError(f"{_short(tree)} is no {' or '.join(self.roots)}", 0)
        return tree

    def check(self, tree: Tree) -> Tree:
        """The same tree, every form of it checked: for trees that were made without this domain's constructor."""
        if not any(self.fits(tree, kind) for kind in self.roots):
            raise CodecError(f"{_short(tree)} is no {' or '.join(self.roots)}")
        self._check_forms(tree)
        return tree

    def canonical(self, tree: Tree) -> Tree:
        """The one tree of all those that mean the same within the domain's rules; `CodecError` for a wrong type."""
        return self.rules(self.check(tree))

    def _check_forms(self, tree: Tree) -> None:
        if isinstance(tree, Form):
            self.form(tree.op, tree.args)
            for arg in tree.args:
                self._check_forms(arg)


def _short(tree: Tree) -> str:
    text = render(tree)
    return text if len(text) <= 60 else text[:57] + "..."


_PAIR_OF_TERMS = Signature(Kind.PROPOSITION, (Kind.TERM, Kind.TERM))
_PAIR_OF_NUMBERS = Signature(Kind.NUMBER, (Kind.NUMBER, Kind.NUMBER))
_MANY_NUMBERS = Signature(Kind.NUMBER, (Kind.NUMBER, Kind.NUMBER), more=True)

ARITHMETIC = Domain(
    name="arithmetic",
    signatures={
        "+": _MANY_NUMBERS,
        "*": _MANY_NUMBERS,
        "-": _PAIR_OF_NUMBERS,
        "/": _PAIR_OF_NUMBERS,
        "neg": Signature(Kind.NUMBER, (Kind.NUMBER,)),
        "=": Signature(Kind.EQUATION, (Kind.NUMBER, Kind.NUMBER)),
    },
    roots=(Kind.NUMBER, Kind.EQUATION),
    rules=canonical_arithmetic,
)

SYLLOGISM = Domain(
    name="syllogism",
    signatures={
        **dict.fromkeys(("all", "no", "some", "some-not"), _PAIR_OF_TERMS),
        "premises": Signature(Kind.PREMISES, (Kind.PROPOSITION,), more=True),
        "argument": Signature(Kind.ARGUMENT, (Kind.PREMISES, Kind.PROPOSITION)),
    },
    roots=(Kind.PROPOSITION, Kind.PREMISES, Kind.ARGUMENT, Kind.VERDICT),
    rules=lambda tree: canonical_syllogism(tree).tree,
)

DOMAINS: Mapping[str, Domain] = {domain.name: domain for domain in (ARITHMETIC, SYLLOGISM)}


def get_domain(name: str) -> Domain:
    """`CodecError` naming the domains there are."""
    if name not in DOMAINS:
        raise CodecError(f"no domain {name!r}", fix=f"one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


def canonical(domain: str, text: str) -> str:
    """The canonical printing of an expression's text: equal meaning within the rules prints equal."""
    language = get_domain(domain)
    return render(language.canonical(language.parse(text)))
