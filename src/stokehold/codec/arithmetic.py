"""Arithmetic over rationals: what counts as the same expression, and what an expression is worth.

Rules of sameness: + and * are associative (flattened) and commutative (operands sorted: numbers by value, then forms
by printing); = is symmetric; minus a number is a number, minus minus is nothing. Nothing is computed: `(+ 1 2)` and `3`
stay different problems.
"""

from fractions import Fraction

from stokehold.codec.sexpr import CodecError, Form, Number, Tree, render

FLATTENED = ("+", "*")
SORTED = ("+", "*", "=")


def canonical_arithmetic(tree: Tree) -> Tree:
    """The representative of all expressions that the rules make equal. Keeps the value; applying it twice is once."""
    if not isinstance(tree, Form):
        return tree
    args = [canonical_arithmetic(arg) for arg in tree.args]
    if tree.op == "neg":
        return _negated(args[0])
    if tree.op in FLATTENED:
        args = [inner for arg in args for inner in _operands(arg, tree.op)]
    if tree.op in SORTED:
        args.sort(key=_order)
    return Form(tree.op, tuple(args))


def value(tree: Tree) -> Fraction:
    """The exact value of a number expression; `CodecError` for a division by zero or anything that is no number."""
    match tree:
        case Number(number):
            return number
        case Form("neg", (arg,)):
            return -value(arg)
        case Form("+", args):
            return sum((value(arg) for arg in args), Fraction(0))
        case Form("-", (left, right)):
            return value(left) - value(right)
        case Form("*", args):
            product = Fraction(1)
            for arg in args:
                product *= value(arg)
            return product
        case Form("/", (left, right)):
            divisor = value(right)
            if divisor == 0:
                raise CodecError(f"division by zero in {render(tree)}")
            return value(left) / divisor
    raise CodecError(f"{render(tree)} has no value as a number")


def _negated(tree: Tree) -> Tree:
    if isinstance(tree, Number):
        return Number(-tree.value)
    if isinstance(tree, Form) and tree.op == "neg":
        return tree.args[0]
    return Form("neg", (tree,))


def _operands(tree: Tree, op: str) -> tuple[Tree, ...]:
    return tree.args if isinstance(tree, Form) and tree.op == op else (tree,)


def _order(tree: Tree) -> tuple[bool, Fraction, str]:
    return (False, tree.value, "") if isinstance(tree, Number) else (True, Fraction(0), render(tree))
