"""One function of ours, read statement by statement: what its names are, and what it uses."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from api_types import ENTERPRISE, RTX, Type, Use

if TYPE_CHECKING:
    from api_program import Program


def literal_words(node: ast.expr) -> Type | None:
    """The strings of Literal["A", "B"]."""
    if not isinstance(node, ast.Subscript) or not ast.unparse(node.value).endswith("Literal"):
        return None
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return Type("words", parts=tuple(Type("words", ast.literal_eval(part)) for part in inner))


def asked_names(function: ast.FunctionDef) -> frozenset[str]:
    """Names that the function asks for before it uses them; a variable stands for all its words."""
    found: set[str] = set()
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("has_member", "hasattr") or (called == "getattr" and len(node.args) == 3):
            asked = node.args[1]
            found.add(str(asked.value) if isinstance(asked, ast.Constant) else ast.unparse(asked))
    return frozenset(found)


class Reader:
    """One function, statement by statement."""

    def __init__(
        self,
        program: Program,
        file: str,
        function: str,
        names: dict[str, Type],
        asked: frozenset[str],
    ) -> None:
        self.program = program
        self.file = file
        self.function = function
        self.names = names
        self.asked = asked
        self.only: str | None = None
        self.found: list[Use] = []

    def use(self, node: ast.AST, owner: str, name: str, **more: Any) -> None:
        where = f"{self.file}:{getattr(node, 'lineno', 0)}"
        asked = more.pop("asked", False) or name in self.asked
        self.found.append(Use(where, owner, name, asked=asked, only=self.only, **more))

    # Statements

    def block(self, body: Sequence[ast.stmt]) -> None:
        before = self.only
        for statement in body:
            self.statement(statement)
        self.only = before

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If):
            self.branch(node)
        elif isinstance(node, ast.For):
            self.bind(node.target, element(self.type_of(node.iter)))
            self.block(node.body)
            self.block(node.orelse)
        elif isinstance(node, ast.While):
            self.type_of(node.test)
            self.block(node.body)
        elif isinstance(node, ast.With):
            for item in node.items:
                found = self.type_of(item.context_expr)
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, found)
            self.block(node.body)
        elif isinstance(node, ast.Try):
            for part in (node.body, node.orelse, node.finalbody):
                self.block(part)
            for handler in node.handlers:
                self.block(handler.body)
        elif isinstance(node, ast.Assign):
            found = self.type_of(node.value)
            for target in node.targets:
                self.bind(target, found)
        elif isinstance(node, ast.AnnAssign):
            found = self.type_of(node.value) if node.value is not None else None
            self.bind(node.target, self.program.annotated(self.file, node.annotation) or found)
        elif isinstance(node, ast.Return):
            found = self.type_of(node.value) if node.value is not None else None
            if found is not None:
                self.program.returns.setdefault(self.function, found)
        elif isinstance(node, ast.FunctionDef):
            name = f"{self.function}.{node.name}"
            self.found += self.program.function(name, node, self.names)
        elif isinstance(node, ast.ClassDef):
            self.nested_class(node)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.type_of(child)

    def branch(self, node: ast.If) -> None:
        self.type_of(node.test)
        positive = _asks_rtx(node.test)
        before = self.only
        if positive is None:
            self.block(node.body)
            self.block(node.orelse)
            return
        mine, other = (RTX, ENTERPRISE) if positive else (ENTERPRISE, RTX)
        self.only = mine
        self.block(node.body)
        alone = isinstance(node.test, ast.Attribute | ast.UnaryOp)
        self.only = other if alone else before
        self.block(node.orelse)
        leaves = isinstance(node.body[-1], ast.Return | ast.Raise | ast.Continue)
        self.only = other if alone and leaves else before

    def nested_class(self, node: ast.ClassDef) -> None:
        """A class that derives from TensorRT's: it overrides every method, with its arguments."""
        own = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        for base in node.bases:
            found = self.type_of(base)
            if found is None or found.kind != "class":
                continue
            names: set[str] = set()
            for surface in self.program.surfaces:
                cls = surface["classes"].get(found.name, {"methods": {}})
                names |= {name for name in cls["methods"] if not name.startswith("__")}
            for name in sorted(names):
                count = len(own[name].args.args) - 1 if name in own else -1
                self.use(own.get(name, node), found.name, name, overrides=count)
        for item in own.values():
            name = f"{self.function}.{node.name}.{item.name}"
            self.found += self.program.function(name, item, self.names)

    def bind(self, target: ast.expr, found: Type | None) -> None:
        if isinstance(target, ast.Name):
            if found is not None:
                self.names[target.id] = found
            else:
                self.names.pop(target.id, None)
        elif isinstance(target, ast.Tuple | ast.List):
            parts = found.parts if found is not None and found.kind == "tuple" else ()
            for index, part in enumerate(target.elts):
                self.bind(part, parts[index] if index < len(parts) else None)
        elif isinstance(target, ast.Subscript):
            self.type_of(target)
        elif isinstance(target, ast.Attribute):
            owner = self.type_of(target.value)
            if owner is None:
                return
            if owner.kind == "object":
                self.use(target, owner.name, target.attr, writes=True)
            elif owner.kind == "own" and found is not None:
                self.program.fields.setdefault((owner.name, target.attr), found)

    # Expressions

    def type_of(self, node: ast.expr | None) -> Type | None:
        """The type of an expression, after noting every use inside it."""
        if node is None:
            return None
        method = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if method is not None:
            found: Type | None = method(node)
            return found
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.type_of(child)
        return None

    def on_name(self, node: ast.Name) -> Type | None:
        if node.id in self.names:
            return self.names[node.id]
        return self.of_ours(self.program.ours(self.file, node.id))

    def of_ours(self, name: str) -> Type | None:
        """A class, a function or a module of ours."""
        if name in self.program.classes:
            return Type("own class", name)
        if name in self.program.trees:
            return Type("own module", name)
        return Type("function", name) if name in self.program.functions else None

    def on_constant(self, node: ast.Constant) -> Type | None:
        return Type("words", node.value) if isinstance(node.value, str) else None

    def on_attribute(self, node: ast.Attribute) -> Type | None:
        owner = self.type_of(node.value)
        if node.attr == "trt":
            return Type("module")
        if owner is None:
            return None
        if owner.kind == "own module":
            return self.of_ours(f"{owner.name}:{node.attr}")
        if owner.kind == "module":
            self.use(node, "", node.attr)
            return Type("class", node.attr) if self.program.offers(node.attr) else None
        if owner.kind in ("class", "object") and not node.attr.startswith("__"):
            self.use(node, owner.name, node.attr)
            return self.program.member(owner.name, node.attr)
        if owner.kind == "own":
            name = f"{owner.name}.{node.attr}"
            if name in self.program.functions:
                function = self.program.functions[name]
                if any(ast.unparse(d) == "property" for d in function.decorator_list):
                    return self.program.returns.get(name)
                return Type("function", name)
            return self.program.fields.get((owner.name, node.attr))
        return None

    def on_call(self, node: ast.Call) -> Type | None:
        called = ast.unparse(node.func)
        given = [self.type_of(argument) for argument in node.args]
        named = {word.arg: self.type_of(word.value) for word in node.keywords if word.arg}
        if called.rpartition(".")[2] in ("member", "has_member", "getattr", "hasattr"):
            return self.by_name(node, given)
        count = len(self.found)
        what = self.type_of(node.func)
        if what is None:
            return self.builtin(called, node, given)
        if what.kind in ("class", "method"):
            owner, _, method = what.name.partition(":")
            # The attribute was noted as a use; it is this call.
            if what.kind == "method" and len(self.found) > count:
                self.found.pop()
            if not any(isinstance(a, ast.Starred) for a in node.args):
                arguments = (len(node.args), tuple(sorted(named)))
                self.use(node, owner, method or "__init__", arguments=arguments)
            if what.kind == "class":
                return Type("object", owner)
            return self.program.returned(what.name)
        if what.kind in ("function", "own class"):
            return self.own_call(what, given, named)
        return None

    def by_name(self, node: ast.Call, given: Sequence[Type | None]) -> Type | None:
        """member(trt.Enum, "NAME"), has_member, hasattr(thing, "name"), getattr."""
        if len(given) < 2 or given[0] is None or given[0].kind not in ("class", "object"):
            return None
        words = given[1]
        owner = given[0].name
        # A name in a variable is looked up when it is wanted, with an error that says so.
        asked = not isinstance(node.args[1], ast.Constant)
        if words is None:
            return given[0] if given[0].kind == "object" else Type("object", owner)
        for word in [words, *words.parts] if words.name else words.parts:
            if word is not None:
                self.use(node, owner, word.name, asked=asked)
        return self.program.member(owner, words.name) or Type("object", owner)

    def builtin(self, called: str, node: ast.Call, given: Sequence[Type | None]) -> Type | None:
        if called in ("list", "tuple", "sorted", "reversed", "iter") and given:
            return given[0]
        if called in ("next", "min", "max") and given:
            return element(given[0])
        if called == "enumerate" and given:
            return Type("list", parts=(Type("tuple", parts=(None, element(given[0]))),))
        if called == "zip":
            return Type("list", parts=(Type("tuple", parts=tuple(map(element, given))),))
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "keys"):
            # The keys of a dict of words.
            table = self.type_of(node.func.value)
            if table is not None and table.kind == "words":
                each = Type("tuple", parts=(table, None)) if node.func.attr == "items" else table
                return Type("list", parts=(each,))
        return None

    def own_call(
        self, what: Type, given: Sequence[Type | None], named: Mapping[str, Type | None]
    ) -> Type | None:
        program = self.program
        if what.kind == "own class":
            fields = [
                item.target.id
                for item in program.classes[what.name].body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
            for field, found in [*zip(fields, given, strict=False), *named.items()]:
                if found is not None:
                    program.fields.setdefault((what.name, str(field)), found)
            self.pass_on(f"{what.name}.__init__", given, named)
            return Type("own", what.name)
        self.pass_on(what.name, given, named)
        return program.returns.get(what.name)

    def pass_on(
        self, name: str, given: Sequence[Type | None], named: Mapping[str, Type | None]
    ) -> None:
        if name not in self.program.functions:
            return
        self.program.callers.setdefault(name, set()).add(self.only or "")
        arguments = [a.arg for a in self.program.functions[name].args.args if a.arg != "self"]
        for argument, found in [*zip(arguments, given, strict=False), *named.items()]:
            if found is not None and found.kind != "words":
                self.program.parameters.setdefault((name, str(argument)), found)

    def on_subscript(self, node: ast.Subscript) -> Type | None:
        owner = self.type_of(node.value)
        self.type_of(node.slice)
        if owner is not None and owner.kind == "object":
            return self.program.returned(f"{owner.name}:__getitem__")
        return element(owner)

    def on_ifexp(self, node: ast.IfExp) -> Type | None:
        self.type_of(node.test)
        positive, before = _asks_rtx(node.test), self.only
        mine, other = (RTX, ENTERPRISE) if positive else (ENTERPRISE, RTX)
        self.only = before if positive is None else mine
        found = self.type_of(node.body)
        self.only = before if positive is None else other
        otherwise = self.type_of(node.orelse)
        self.only = before
        return found or otherwise

    def on_boolop(self, node: ast.BoolOp) -> Type | None:
        before, found = self.only, []
        for value in node.values:
            found.append(self.type_of(value))
            positive = _asks_rtx(value)
            if positive is not None and isinstance(node.op, ast.And):
                self.only = RTX if positive else ENTERPRISE
        self.only = before
        return next((one for one in found if one is not None), None)

    def on_namedexpr(self, node: ast.NamedExpr) -> Type | None:
        found = self.type_of(node.value)
        self.bind(node.target, found)
        return found

    def on_tuple(self, node: ast.Tuple) -> Type | None:
        return Type("tuple", parts=tuple(self.type_of(part) for part in node.elts))

    def on_list(self, node: ast.List) -> Type | None:
        types = [self.type_of(part) for part in node.elts]
        return Type("list", parts=(types[0],)) if types and types[0] else None

    def on_dict(self, node: ast.Dict) -> Type | None:
        keys = [self.type_of(key) for key in node.keys]
        for value in node.values:
            self.type_of(value)
        words = tuple(key for key in keys if key is not None and key.kind == "words")
        return Type("words", parts=words) if words and len(words) == len(keys) else None

    def comprehension(self, node: Any, *results: ast.expr) -> Type | None:
        before = dict(self.names)
        for part in node.generators:
            self.bind(part.target, element(self.type_of(part.iter)))
            for condition in part.ifs:
                self.type_of(condition)
        found = [self.type_of(result) for result in results]
        self.names = before
        return Type("list", parts=(found[0],)) if found[0] is not None else None

    def on_listcomp(self, node: ast.ListComp) -> Type | None:
        return self.comprehension(node, node.elt)

    def on_setcomp(self, node: ast.SetComp) -> Type | None:
        return self.comprehension(node, node.elt)

    def on_generatorexp(self, node: ast.GeneratorExp) -> Type | None:
        return self.comprehension(node, node.elt)

    def on_dictcomp(self, node: ast.DictComp) -> Type | None:
        self.comprehension(node, node.key, node.value)
        return None


def element(found: Type | None) -> Type | None:
    """What a loop over it gives."""
    if found is None or not found.parts or found.kind not in ("list", "tuple"):
        return None
    if found.kind == "tuple" and all(p is not None and p.kind == "words" for p in found.parts):
        return replace(found, kind="words")
    return found.parts[0]


def _asks_rtx(test: ast.expr) -> bool | None:
    """True for `x.is_rtx` (and more), False for `not x.is_rtx`, None for another question."""
    parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    for part in parts:
        if isinstance(part, ast.Attribute) and part.attr == "is_rtx":
            return True
        if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not):
            inner = part.operand
            if isinstance(inner, ast.Attribute) and inner.attr == "is_rtx":
                return False
    return None
