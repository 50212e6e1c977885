"""Which parts of TensorRT's API our sources use, found by reading the sources.

    program = Program(sources, surfaces)      # file -> text; surfaces as `api_surface` prints them
    for use in program.uses(): problem(use, surface)

The reader follows TensorRT's objects through names, attributes, calls, loops, and our own functions
and classes, in both directions of a call. What it starts from: `trt` and `x.trt` are the module; an
annotation that the file declares as `IBuilderConfig: TypeAlias = Any` is TensorRT's class of that
name. What a call of TensorRT returns is in its docstring.

Guards: a name that the same function asks for (`has_member(trt.E, "NAME")`, `hasattr(x, "name")`)
may be missing in some versions. What runs only under `library.is_rtx`, or in functions called only
from there, belongs to TensorRT-RTX alone; under its opposite, to TensorRT.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from api_reader import Reader, asked_names, literal_words
from api_types import Surface, Type, Use

PACKAGE = "vggt_deploy"
# Types in docstrings that have nothing of TensorRT's.
PLAIN = {"None", "bool", "int", "float", "str", "bytes", "object", "capsule", "Any", "Callable"}
PLAIN |= {"tuple", "Tuple", "list", "List", "dict", "Dict", "set", "Annotated"}
PLAIN |= {"array", "ndarray", "Buffer", "buffer", "SupportsInt", "SupportsFloat"}


class Program:
    """Our sources, read together."""

    def __init__(self, sources: Mapping[str, str], surfaces: Sequence[Surface]) -> None:
        self.surfaces = surfaces
        self.trees = {file: ast.parse(text) for file, text in sources.items()}
        # Ours are named "file:function", "file:Class" and "file:Class.method".
        self.classes: dict[str, ast.ClassDef] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.imports: dict[tuple[str, str], str] = {}
        self.aliases: set[tuple[str, str]] = set()
        self.literals: dict[str, Type] = {}
        # What is learnt while reading.
        self.fields: dict[tuple[str, str], Type] = {}
        self.parameters: dict[tuple[str, str], Type] = {}
        self.returns: dict[str, Type] = {}
        self.callers: dict[str, set[str]] = {}
        self.only: dict[str, str | None] = {}
        self.unknown: set[str] = set()
        for file, tree in self.trees.items():
            self._collect(file, tree)
        for name, node in self.classes.items():
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    found = self.annotated(name.partition(":")[0], item.annotation)
                    if found is not None:
                        self.fields[name, item.target.id] = found

    def _collect(self, file: str, tree: ast.Module) -> None:
        """Names that annotations and calls may have."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = (node.module or "").removeprefix(f"{PACKAGE}.").replace(".", "/")
                for alias in node.names:
                    self.imports[file, alias.asname or alias.name] = f"{base}.py:{alias.name}"
                    if f"{base}/{alias.name}.py" in self.trees:
                        self.imports[file, alias.asname or alias.name] = f"{base}/{alias.name}.py"
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self.classes[f"{file}:{node.name}"] = node
                for item in node.body:
                    if isinstance(item, ast.FunctionDef):
                        self.functions[f"{file}:{node.name}.{item.name}"] = item
            elif isinstance(node, ast.FunctionDef):
                self.functions[f"{file}:{node.name}"] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if ast.unparse(node.annotation).endswith("TypeAlias"):
                    self.aliases.add((file, node.target.id))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                words = literal_words(node.value)
                if words is not None:
                    self.literals[f"{file}:{node.targets[0].id}"] = words

    def ours(self, file: str, name: str) -> str:
        """The full name of what a file calls `name`."""
        return self.imports.get((file, name), f"{file}:{name}")

    def annotated(self, file: str, node: ast.expr | None) -> Type | None:
        """What an annotation says."""
        if node is None:
            return None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if (words := literal_words(node)) is not None:
            return words
        if isinstance(node, ast.BinOp):
            return self.annotated(file, node.left) or self.annotated(file, node.right)
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            if outer not in ("list", "tuple", "Sequence", "Iterator", "Iterable"):
                return None
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            parts = tuple(self.annotated(file, part) for part in inner)
            if outer == "tuple" and not any(
                isinstance(part, ast.Constant) and part.value is ... for part in inner
            ):
                return Type("tuple", parts=parts)
            return Type("list", parts=parts[:1]) if parts[0] else None
        name = ast.unparse(node)
        if (file, name) in self.aliases:
            if self.offers(name):
                return Type("object", name)
            self.unknown.add(f"{file}: no version has a class {name}")
        name = self.ours(file, name)
        return Type("own", name) if name in self.classes else self.literals.get(name)

    def offers(self, name: str) -> bool:
        """Whether some version has this class."""
        return any(name in surface["classes"] for surface in self.surfaces)

    def member(self, owner: str, name: str) -> Type | None:
        """What an attribute of TensorRT's class `owner` is."""
        if self.offers(f"{owner}.{name}"):
            return Type("class", f"{owner}.{name}")
        for surface in self.surfaces:
            cls = surface["classes"].get(owner, {"enum": (), "methods": (), "properties": {}})
            if name in (cls["enum"] or ()):
                return Type("object", owner)
            if name in cls["methods"]:
                return Type("method", f"{owner}:{name}")
            if name in cls["properties"]:
                return self.said(cls["properties"][name][0])
        return None

    def returned(self, method: str) -> Type | None:
        """What a method of TensorRT returns."""
        owner, _, name = method.partition(":")
        for surface in self.surfaces:
            cls = surface["classes"].get(owner, {"methods": {}})
            for _, returns in cls["methods"].get(name, ()):
                found = self.said(returns)
                if found is not None:
                    return found
        return None

    def said(self, text: str | None) -> Type | None:
        """A type in the words of a docstring: `list[Dims]`, `nvinfer1::DataType`."""
        match = re.fullmatch(r"[Ll]ist\[(.+)\]", text or "")
        if match is not None:
            inner = self.said(match[1])
            return Type("list", parts=(inner,)) if inner else None
        name = (text or "").removeprefix("Optional[").partition("|")[0].strip(" ]")
        name = name.rpartition("::")[2]
        # Some are bound under another name than C++ has, IParserError as ParserError.
        for candidate in (name, name.removeprefix("I")):
            if self.offers(candidate):
                return Type("object", candidate)
        if name and name.partition("[")[0] not in PLAIN:
            self.unknown.add(f"a docstring speaks of {text}, which is no class")
        return None

    def uses(self) -> list[Use]:
        """Every use. Types travel through calls: the sources are read until nothing new comes."""
        found: list[Use] = []
        before: object = None
        while (now := self._state()) != before:
            before = now
            self.callers = {}
            found = [
                use
                for name, node in self.functions.items()
                for use in self.function(name, node, {})
            ]
            self.only = {
                name: who.copy().pop() or None if len(who) == 1 else None
                for name, who in self.callers.items()
            }
        return list(dict.fromkeys(found))

    def _state(self) -> object:
        tables = (self.fields, self.parameters, self.returns, self.only)
        return tuple(dict(table) for table in tables)

    def function(
        self, name: str, node: ast.FunctionDef, outer: Mapping[str, Type]
    ) -> Sequence[Use]:
        """The uses in one function; `outer` are the names of the function around it."""
        file, _, inside = name.partition(":")
        reader = Reader(self, file, name, dict(outer), asked_names(node))
        reader.only = self.only.get(name)
        owner = f"{file}:{inside.partition('.')[0]}"
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            found = self.annotated(file, argument.annotation)
            found = found or self.parameters.get((name, argument.arg))
            if argument.arg == "trt":
                found = Type("module")
            if argument.arg == "self" and owner in self.classes:
                found = Type("own", owner)
            if found is not None:
                reader.names[argument.arg] = found
        returns = self.annotated(file, node.returns)
        if returns is not None:
            self.returns[name] = returns
        reader.block(node.body)
        return reader.found
