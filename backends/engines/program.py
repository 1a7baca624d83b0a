"""What an engine gets: a program, elementwise array-API code; and its straight-line form, traced, for the fast engines.

A program is called once on symbols that record what is done to them. Arithmetic among hyperparameters is kept apart:
it is evaluated in Python's double precision before each launch and reaches the kernel as one rounded number, just
as it would if the code ran on arrays. So no value of a hyperparameter is ever compiled in.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import copysign
from typing import Any, NoReturn

__all__ = ["INFIX", "KEPT", "LOGIC", "Code", "Node", "Program", "TraceError"]

SCALAR_OPERATORS: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
    "abs": abs,
}
LARGEST_POWER = 16
#: Compiled programs that an engine keeps of each kind, those asked for last. One is a program on arrays of some dtypes;
#: no number is compiled in, so a process has a few, of all optimizers together. Only where programs are made again and
#: again do older ones go; one that a step runs is held by the step.
KEPT = 256
#: Operations whose outcome is a truth value; the last three also take truth values.
LOGIC = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")
#: Templates of the operations that most languages write alike.
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SIGNS |= {"eq": "==", "ne": "!="}
INFIX = {"neg": "-{0}", **{op: f"{{0}} {sign} {{1}}" for op, sign in SIGNS.items()}}


class TraceError(TypeError):
    """A rule did something that cannot be turned into straight-line code; the message names its line."""


@dataclass(frozen=True, eq=False)
class Program:
    """Elementwise array-API code with named scalars; what it means is for who made it to know.

    Engines keep what they compile by the program's identity, so equal programs should be one object.
    """

    name: str
    #: ``function(xp, x, g, *state, **scalars) -> (x, *state)``: new array and state, from the old ones and a gradient.
    function: Callable[..., Any]
    #: ``measured(xp, g, scalars) -> g``: the part of which clipping by norm takes the norm.
    measured: Callable[[Any, Any, Mapping[str, Any]], Any]
    #: Names of the state arrays, in order.
    slots: tuple[str, ...]
    #: Names of the numbers that it reads.
    scalars: tuple[str, ...]
    #: Those of them that are one number per tensor.
    per_tensor: tuple[str, ...]
    #: For each output the number of the slot by which it is rounded stochastically (`rounding`), or None; empty where
    #: none is.
    stochastic: tuple[int | None, ...] = ()
    #: Whether the first output is what is to be added to x, so that it should not be put in the place of x.
    returns_update: bool = False
    #: Where `function` is written, if that is not what an error should point at.
    file: str = __file__

    @cached_property
    def code(self) -> Code:
        """The program as straight-line code; a `TraceError`, which names the line, if it leaves the subset."""
        return _trace(self)


@dataclass(frozen=True)
class Node:
    """One operation: ``name = op(*args)``. Arguments are names of nodes, of inputs or of scalars."""

    name: str
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Straight-line code for one element."""

    #: ``x``, ``g`` and the state, in order.
    inputs: tuple[str, ...]
    #: Inputs that hold one number per tensor (``norm_scale``, where it is used).
    per_tensor: tuple[str, ...]
    #: One expression for each number that the code reads, named ``s0``, ``s1``, …
    scalars: tuple[tuple, ...]
    #: The operations, in order.
    nodes: tuple[Node, ...]
    #: Names of the new ``x`` and state, in the order of the inputs without ``g``.
    outputs: tuple[str, ...]
    #: Name of that of which clipping by norm takes the norm.
    measured: str

    def values(self, hypers: Mapping[str, Any]) -> list[Any]:
        """Evaluate the scalar expressions for these hyperparameters, in double precision."""
        # Most are a hyperparameter as it is.
        return [hypers[e[1]] if e[0] == "hyper" else evaluate(e, hypers) for e in self.scalars]

    def render(self, operations: Mapping[str, str], only: tuple[str, ...] = ()) -> list[str]:
        """Write the nodes as ``name = expression``, by a template for each operation with ``{0}``, … for arguments.

        `only`, if given, says which names are wanted: no more is written than they need.
        """
        needed = set(only or self.outputs)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.args)
        return [f"{n.name} = {operations[n.op].format(*n.args)}" for n in self.nodes if n.name in needed]


def evaluate(expression: tuple, hypers: Mapping[str, Any]) -> Any:
    """Compute one scalar expression."""
    kind = expression[0]
    if kind == "const":
        return expression[1]
    if kind == "hyper":
        return hypers[expression[1]]
    return SCALAR_OPERATORS[kind](*[evaluate(part, hypers) for part in expression[1:]])


class Valueless:
    """What stands for a value while a rule is traced, and has none."""

    # Let NumPy scalars and arrays defer to the operators below, which refuse what is not a Python number.
    __array_ufunc__ = None
    what, instead = "a value", ""

    def __bool__(self) -> bool:
        refuse(f"a branch on {self.what}{self.instead}")

    def __float__(self) -> float:
        refuse(f"{self.what} turned into a Python number")

    def __getattr__(self, name: str) -> NoReturn:
        refuse(f"'.{name}' of {self.what}")


class Scalar(Valueless):
    """A hyperparameter, or arithmetic of hyperparameters and Python numbers."""

    what = "a hyperparameter"

    def __init__(self, expression: tuple) -> None:
        self.expression = expression


class Question(Valueless):
    """A comparison of hyperparameters alone: a condition for ``xp.where``, and nothing else."""

    what = "a hyperparameter"

    def __init__(self, op: str, values: tuple[Any, ...]) -> None:
        self.op, self.values = op, values


class Symbol(Valueless):
    """An array element, or (``truth``) the outcome of a comparison of elements."""

    what, instead = "an array", " (use xp.where)"

    def __init__(self, recorder: Recorder, name: str, truth: bool = False) -> None:
        self.recorder, self.name, self.truth = recorder, name, truth


class Recorder:
    """The list of operations recorded so far; equal operations on equal arguments are recorded once."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[str, tuple[str, ...]], Node] = {}
        self.scalars: dict[tuple, str] = {}

    def name(self, value: Any) -> str:
        if isinstance(value, Symbol):
            return value.name
        expression = scalar_expression(value)
        return self.scalars.setdefault(expression, f"s{len(self.scalars)}")

    def record(self, op: str, *values: Any, truth: bool = False) -> Symbol:
        truths = [isinstance(value, Symbol) and value.truth for value in values]
        if op in LOGIC[-3:] and not all(truths):
            refuse(f"{op!r} of something that is not a comparison of arrays")
        if op not in LOGIC[-3:] and any(truths[op == "where" :]):
            refuse(f"{op!r} of the outcome of a comparison (use xp.where)")
        key = op, tuple(self.name(value) for value in values)
        node = self.nodes.setdefault(key, Node(f"t{len(self.nodes)}", *key))
        return Symbol(self, node.name, truth)


def scalar_expression(value: Any) -> tuple:
    if isinstance(value, Scalar):
        return value.expression
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        refuse(f"a value of type {type(value).__name__}")
    # The sign is part of the key: 0.0 and -0.0 are equal, but not the same number.
    return ("const", float(value), copysign(1.0, value))


def apply(op: str, *values: Any, truth: bool = False) -> Any:
    """Do one operation on symbols, or on hyperparameters alone."""
    symbols = [value for value in values if isinstance(value, Symbol)]
    if symbols:
        return symbols[0].recorder.record(op, *values, truth=truth)
    if truth and op not in LOGIC[-3:]:
        return Question(op, values)
    if op not in SCALAR_OPERATORS:
        refuse(f"{op!r} of hyperparameters alone")
    return Scalar((op, *map(scalar_expression, values)))


class _UntraceableError(Exception):
    """What a rule did, without the place."""


def refuse(what: str) -> NoReturn:
    """Give up: the rule did this."""
    raise _UntraceableError(what)


def _located(program: Program, error: Exception) -> TraceError:
    """Name the line where an exception left the rule: the innermost one that is neither here nor in its wrapping."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, program.file)]
    if not frames:
        return TraceError(f"rule {program.name!r}: {type(error).__name__}: {error}")
    place, line = f"{frames[-1].filename}:{frames[-1].lineno}", frames[-1].line
    if isinstance(error, _UntraceableError):
        return TraceError(f"{place}: cannot trace {error}: {line}")
    return TraceError(f"{place}: cannot trace {line}: {type(error).__name__}: {error}")


def power(base: Any, exponent: Any) -> Any:
    """``base ** exponent``: small integer powers of arrays are products."""
    if not isinstance(base, Symbol) and not isinstance(exponent, Symbol):
        return apply("pow", base, exponent)
    if not isinstance(base, Symbol) or not isinstance(exponent, int) or not 0 < abs(exponent) <= LARGEST_POWER:
        refuse(f"'**' other than an array to an integer from 1 to {LARGEST_POWER} or its negative")
    result: Any = None
    square, n = base, abs(exponent)
    while n:
        if n & 1:
            result = square if result is None else apply("mul", result, square)
        n >>= 1
        if n:
            square = apply("mul", square, square)
    return apply("div", 1.0, result) if exponent < 0 else result


#: Each operation: the operator that means it, and the function of the array API.
BINARY = {
    "add": ("add", "add"), "sub": ("sub", "subtract"), "mul": ("mul", "multiply"), "div": ("truediv", "divide"),
    "min": (None, "minimum"), "max": (None, "maximum"), "lt": ("lt", "less"), "le": ("le", "less_equal"),
    "gt": ("gt", "greater"), "ge": ("ge", "greater_equal"), "eq": ("eq", "equal"), "ne": ("ne", "not_equal"),
    "and": ("and", "logical_and"), "or": ("or", "logical_or"),
}  # fmt: skip
UNARY = {
    "neg": ("neg", "negative"), "abs": ("abs", "abs"), "not": ("invert", "logical_not"), "sqrt": (None, "sqrt"),
    "sign": (None, "sign"), "exp": (None, "exp"), "log": (None, "log"),
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pow": power,
    "square": lambda a: apply("mul", a, a),
    "isnan": lambda a: apply("ne", a, a, truth=True),
}


def _define() -> None:
    """Give symbols and scalars their operators, and a rule its functions."""
    for op, (sign, function) in {**BINARY, **UNARY}.items():
        FUNCTIONS[function] = partial(apply, op, truth=op in LOGIC)
        # Hyperparameters have no logic: their comparisons are questions, for `where` alone.
        for kind in (Symbol,) if op in LOGIC[-3:] else (Symbol, Scalar):
            if sign is not None:
                setattr(kind, f"__{sign}__", lambda *values, op=op: apply(op, *values, truth=op in LOGIC))
            if sign is not None and op in BINARY and op not in LOGIC:
                setattr(kind, f"__r{sign}__", lambda a, b, op=op: apply(op, b, a))
    others = {"pow": power, "rpow": lambda a, b: power(b, a), "pos": lambda a: a}
    for kind in (Symbol, Scalar):
        for name, method in others.items():
            setattr(kind, f"__{name}__", method)


_define()


class Namespace:
    """What a rule sees as ``xp`` while it is traced: the functions a rule may use."""

    def __init__(self) -> None:
        self.__dict__.update(FUNCTIONS)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Question):
            recorder = next(value.recorder for value in (a, b) if isinstance(value, Symbol))
            condition = recorder.record(condition.op, *condition.values, truth=True)
        if not isinstance(condition, Symbol) or not condition.truth:
            refuse("xp.where on something that is not a comparison of arrays")
        return apply("where", condition, a, b)

    def clip(self, a: Any, min: Any = None, max: Any = None) -> Any:
        low = a if min is None else apply("max", a, min)
        return low if max is None else apply("min", low, max)

    def __getattr__(self, name: str) -> NoReturn:
        refuse(f"xp.{name}, which is not among the functions a rule may use")


def _trace(program: Program) -> Code:
    recorder = Recorder()
    inputs = ("x", "g", *(f"a{i}" for i in range(len(program.slots))))
    symbols = [Symbol(recorder, name) for name in inputs]
    scalars: dict[str, Any] = {name: Scalar(("hyper", name)) for name in program.scalars}
    for name in program.per_tensor:
        scalars[name] = Symbol(recorder, name)
    xp = Namespace()
    try:
        measured = recorder.name(program.measured(xp, symbols[1], scalars))
        outputs = program.function(xp, *symbols, **scalars)
    except Exception as error:  # whatever its code tried with symbols
        raise _located(program, error) from error
    if not isinstance(outputs, tuple) or len(outputs) != len(inputs) - 1:
        raise TraceError(
            f"rule {program.name!r}: expected a tuple of the new parameter and {len(inputs) - 2} state arrays, "
            f"got {type(outputs).__name__}"
        )
    names = []
    for output in outputs:
        if not isinstance(output, Symbol) or output.truth:
            raise TraceError(f"rule {program.name!r}: it returns something that is not an array of numbers")
        names.append(output.name)
    expressions, nodes = tuple(recorder.scalars), tuple(recorder.nodes.values())
    return Code(inputs, program.per_tensor, expressions, nodes, tuple(names), measured)
