"""`calculate_output` of a `multi` grader: arithmetic over names, read as a tree and walked; nothing is executed.

+ - * / ^ (power; `**` as well)   ( )   numbers   names of graders
min max abs floor ceil exp sqrt log
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

__all__ = ["FormulaError", "evaluate", "names_in"]

MAX_LENGTH = 2_000
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_FUNCTIONS: Mapping[str, tuple[Callable[..., float], int | None]] = {
    "min": (min, None),
    "max": (max, None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}


class FormulaError(Exception):
    """The formula cannot be read, or has no value for these numbers."""


def names_in(formula: str) -> set[str]:
    """Names of graders that it uses.

    Raises:
        FormulaError: it is no formula.
    """
    tree = _parse(formula)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _called(tree)


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Its value.

    Raises:
        FormulaError: it is no formula, a name has no value, or the result is no finite number.
    """
    try:
        value = _value(_parse(formula), values)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise FormulaError(f"{formula!r} has no value here: {error}") from error
    if not math.isfinite(value):
        raise FormulaError(f"{formula!r} is not finite here")
    return float(value)


def _parse(formula: str) -> ast.expr:
    if len(formula) > MAX_LENGTH:
        raise FormulaError(f"it is longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(formula.strip().replace("^", "**"), mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"{formula!r} is no formula: {error}") from error
    return tree


def _check(node: ast.expr) -> None:
    """Refuse everything but arithmetic."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        _check(node.operand)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is None:
            raise FormulaError(f"there is no function `{node.func.id}` (there are {', '.join(_FUNCTIONS)})")
        wanted = function[1]
        if not node.args or (wanted is not None and len(node.args) != wanted):
            raise FormulaError(f"`{node.func.id}` takes {wanted or 'some'} numbers, got {len(node.args)}")
        for argument in node.args:
            _check(argument)
    elif not (isinstance(node, ast.Name) or _is_number(node)):
        raise FormulaError(f"only numbers, graders, + - * / ^ and functions, got `{ast.unparse(node)}`")


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        if node.id not in values:
            raise FormulaError(f"`{node.id}` has no value")
        return float(values[node.id])
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, values)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    arguments = [_value(argument, values) for argument in node.args]
    return float(_FUNCTIONS[node.func.id][0](*arguments) if len(arguments) > 1 else _one(node.func.id, arguments[0]))


def _one(name: str, value: float) -> float:
    return value if name in ("min", "max") else float(_FUNCTIONS[name][0](value))


def _called(tree: ast.expr) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
