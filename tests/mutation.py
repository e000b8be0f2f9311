"""Small defects that can be planted in a module of the program that runs: what may be changed, how it is told, and how it is done.

A mutant is one change of the syntax tree: a comparison, a condition, a number, a statement that is left out, and so on (`variants`).
Planting one replaces the code of one function, a default, or a constant wherever dwrap has imported it. Knows syntax trees. Does not know
tests.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

SHOWN: Final = 44  # characters of a statement on each side of what was changed

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(left, ops, comparators):
            for at, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for at in range(len(values)):
                rest = [*values[:at], *values[at + 1 :]]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            yield ast.BinOp(left, _OPERATORS[type(op)](), right)
        case ast.AugAssign(target, op, value):
            yield ast.Pass()
            if type(op) in _OPERATORS:
                yield ast.AugAssign(target, _OPERATORS[type(op)](), value)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Call(ast.Name("min" | "max" as name) as function, arguments, keywords):
            yield ast.Call(ast.Name("max" if name == "min" else "min", ast.Load()), arguments, keywords)
            yield from arguments if len(arguments) > 1 else ()
            if len(arguments) > 2:
                yield from (ast.Call(function, [*arguments[:at], *arguments[at + 1 :]], keywords) for at in range(len(arguments)))
        case ast.Set(elements) | ast.Tuple(elements, ast.Load()) | ast.List(elements, ast.Load()):
            for at in range(len(elements)):
                if not _is_log(elements[at]):
                    yield _like(node, [*elements[:at], *elements[at + 1 :]])
        case ast.If(test, body, orelse) | ast.While(test, body, orelse) if isinstance(test, ast.Name | ast.Attribute | ast.Call):
            yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse) if isinstance(test, ast.Name | ast.Attribute | ast.Call):
            yield ast.IfExp(test, orelse, body)
        case ast.Expr(ast.Call()) | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets) if any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
            yield ast.Pass()


def _like(node: ast.Set | ast.Tuple | ast.List, elements: list[ast.expr]) -> ast.expr:
    """A display of the same kind with these elements."""
    if isinstance(node, ast.Set):
        return ast.Set(elements) if elements else ast.Call(ast.Name("set", ast.Load()), [], [])
    return type(node)(elements, ast.Load())


@dataclass(frozen=True)
class Mutant:
    """One change of a core."""

    core: str
    where: str  # the function or class that it is in, or "" for the module
    line: int
    what: str
    path: tuple[ast.AST, ...]  # from the module to the node
    variant: ast.AST

    @property
    def key(self) -> str:
        """What it is called in survivors.txt."""
        return f"{self.core} {self.where}: {self.what}"


class Core:
    """A module that is mutated, and all changes of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: ModuleType = importlib.import_module("dwrap." + name.removesuffix(".py").replace("/", "."))
        self.file = str(self.module.__file__)
        self.tree = ast.parse(Path(self.file).read_text("utf-8"))
        self.mutants = list(self._visit((self.tree,), "", None))

    def _visit(self, path: tuple[ast.AST, ...], where: str, statement: ast.stmt | None) -> Iterator[Mutant]:
        for name, value in ast.iter_fields(path[-1]):
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or _is_beside(path, name, child):
                    continue
                inner = f"{where}.{child.name}".lstrip(".") if isinstance(child, ast.FunctionDef | ast.ClassDef) else where
                here = child if isinstance(child, ast.stmt) else statement
                for variant in [*variants(child), *_early_return(path, child)]:
                    if here is not None:
                        what = _shown(here, child, variant)
                        yield Mutant(self.name, inner, getattr(child, "lineno", here.lineno), what, (*path, child), variant)
                yield from self._visit((*path, child), inner, here)

    @staticmethod
    def is_in_function(mutant: Mutant) -> bool:
        """Whether only those notice it who enter that function."""
        return _function_of(mutant.path) is not None

    def plant(self, mutant: Mutant) -> None:
        """Changes the program that runs."""
        _replace(mutant.path[-2], mutant.path[-1], mutant.variant)
        ast.fix_missing_locations(self.tree)
        function = _function_of(mutant.path[:-1])
        inside = vars(self.module)
        if function is not None and not any(node is function.args for node in mutant.path):
            live = _live(inside, mutant.where)
            live.__code__ = _code_of(compile(self.tree, self.file, "exec"), mutant.where)
        elif function is not None:
            evaluated = [_value(value, inside) for value in function.args.defaults]
            _live(inside, mutant.where).__defaults__ = tuple(evaluated)
        elif isinstance(mutant.path[1], ast.ClassDef):
            _set_default(inside[mutant.where], mutant.path[2], inside)
        else:
            _rebind(mutant.path[1], inside)


def _is_beside(path: tuple[ast.AST, ...], name: str, child: ast.AST) -> bool:
    """Types, texts, logs, and what makes classes: a change of these is none of what is done."""
    if name in ("annotation", "returns", "decorator_list", "bases") or isinstance(child, ast.JoinedStr) or _is_log(child):
        return True
    is_plain = isinstance(child, ast.Assign) and isinstance(path[-1], ast.ClassDef)  # __slots__
    is_made = isinstance(child, ast.Subscript | ast.Call) and not _function_of(path)  # type aliases, field(...)
    return is_plain or is_made


def _is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Log"


def _early_return(path: tuple[ast.AST, ...], node: ast.AST) -> list[ast.AST]:
    """A return that others follow is left out."""
    return [ast.Pass()] if isinstance(node, ast.Return) and not isinstance(path[-1], ast.FunctionDef) else []


def _function_of(path: tuple[ast.AST, ...]) -> ast.FunctionDef | None:
    return next((node for node in path if isinstance(node, ast.FunctionDef)), None)


def _replace(parent: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, list) and any(one is old for one in value):
            setattr(parent, name, [new if one is old else one for one in value])


def _live(inside: dict[str, Any], where: str) -> FunctionType:
    owner, _, name = where.rpartition(".")
    found = vars(inside[owner])[name] if owner else inside[name]
    function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    assert isinstance(function, FunctionType), where
    return function


def _code_of(code: CodeType, where: str) -> CodeType:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return next(one for part in inner for one in (part, *part.co_consts) if isinstance(one, CodeType) and one.co_qualname == where)


def _set_default(owner: type, statement: ast.AST, inside: dict[str, Any]) -> None:
    """The default of a field of a dataclass."""
    assert isinstance(statement, ast.AnnAssign)
    assert isinstance(statement.target, ast.Name)
    assert statement.value is not None
    make = owner.__new__ if issubclass(owner, tuple) else owner.__init__  # type: ignore[misc]
    code, defaults = make.__code__, list(make.__defaults__ or ())
    at = code.co_varnames.index(statement.target.id) - code.co_argcount + len(defaults)
    defaults[at] = _value(statement.value, inside)
    make.__defaults__ = tuple(defaults)


def _rebind(statement: ast.AST, inside: dict[str, Any]) -> None:
    """A constant of the module, wherever dwrap has imported it."""
    assert isinstance(statement, ast.Assign | ast.AnnAssign)
    assert statement.value is not None
    target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
    assert isinstance(target, ast.Name)
    old, new = inside[target.id], _value(statement.value, inside)
    for name, module in sys.modules.items():
        if name.startswith("dwrap.") and vars(module).get(target.id) is old:
            setattr(module, target.id, new)


def _value(node: ast.expr, inside: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "", "eval"), inside)  # noqa: S307 - our own source


def _shown(statement: ast.stmt, node: ast.AST, variant: ast.AST) -> str:
    """A change as text: what stood, and what stands there, between what is left of the statement."""
    mark = ast.Name("_CHANGED_", ast.Load())
    before, after = _head(node), _head(variant)
    if statement is node:
        return _differ(before, after)
    for parent in ast.walk(statement):
        _replace(parent, node, mark)
    text = _head(statement)
    for parent in ast.walk(statement):
        _replace(parent, mark, node)
    left, _, right = text.partition("_CHANGED_")
    return _differ(left + before + right, left + after + right)


def _head(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]


def _differ(before: str, after: str) -> str:
    """Two texts as one, with that in braces in which they differ, in whole words."""
    start = _common(before, after)
    while start and _is_in_word(start[-1]):
        start = start[:-1]
    old, new = before[len(start) :], after[len(start) :]
    end = _common(old[::-1], new[::-1])[::-1]
    while end and _is_in_word(end[0]):
        end = end[1:]
    old, new = old[: len(old) - len(end)], new[: len(new) - len(end)]
    return f"{'…' * (len(start) > SHOWN)}{start[-SHOWN:]}{{{old} → {new}}}{end[:SHOWN]}{'…' * (len(end) > SHOWN)}"


def _common(one: str, other: str) -> str:
    return "".join(left for left, right in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _is_in_word(letter: str) -> bool:
    return letter.isalnum() or letter in "_.'=!<>"
