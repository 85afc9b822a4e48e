"""Arithmetic in recipes, without Python's `eval`: numbers, names and a few functions, nothing else."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from lit_compress.errors import UserError

__all__ = ["calculate", "number"]

_LONGEST = 200
# Variables that are squares of each other would soon be numbers of millions of digits.
_LARGEST = 1e15
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


def calculate(text: str, variables: Mapping[str, float]) -> float:
    """The value of an expression of numbers, variables, ``+ - * / // %`` and ``abs float int max min round``.

    Powers are left out: with them a short text can ask for a number that fills the memory.

    Args:
        text: expression, at most 200 characters.
        variables: numbers by name.

    Raises:
        KeyError: an unknown variable.
        UserError: anything else that is not such an expression, or has no value.

    Example:
        >>> calculate("max(num_epochs - 2, 1) * 0.5", {"num_epochs": 10})
        4.0

    """
    if len(text) > _LONGEST:
        raise UserError(f"eval({text[:20]}...): the expression has more than {_LONGEST} characters; write its value")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, variables)
        if not abs(value) < _LARGEST:  # also no number at all
            raise ValueError(f"its value is not below {_LARGEST:g}")
        return float(f"{value:.12g}") if isinstance(value, float) else value  # 8e-05 * 0.1 is 8e-06 for people
    except KeyError:
        raise
    except UserError as error:
        raise UserError(f"eval({text}): {error}") from error
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise UserError(f"eval({text}): {error}; write its value instead") from error


def number(value: object) -> float | None:
    """A number, or text that is one (YAML reads ``5e-5`` as text); None for the rest, truth values and NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = value if isinstance(value, int | float) else float(value)
        return found if math.isfinite(found) else None
    except (ValueError, OverflowError):
        return None


def _value(node: ast.expr, variables: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return node.value  # type: ignore[return-value]
        case ast.Name():
            return variables[node.id]
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.left, variables), _value(node.right, variables))
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_value(node.operand, variables))
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS and not node.keywords:
            return _FUNCTIONS[name](*(_value(argument, variables) for argument in node.args))
    raise UserError(
        f"{type(node).__name__} is not allowed; there are numbers, variables, + - * / // % and {', '.join(_FUNCTIONS)}"
    )
