"""What users may rely on, as text: names, signatures, defaults, commands and exit statuses.

`python -m tests.packaging.interface` writes it into `interface.txt`, which a test compares.
Annotations are shown as they are written, and nothing that Python, pydantic or typer adds by
itself: the text depends on no version of them, nor on Triton or the C++ library.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import FunctionType, ModuleType
from typing import Any

import torch
from pydantic import BaseModel
from typer.main import get_command

from lpfs.cli import app
from lpfs.cli.statuses import Status

FILE = Path(__file__).with_name("interface.txt")
PACKAGES = (
    "lpfs",
    "lpfs.data",
    "lpfs.optim",
    "lpfs.models",
    "lpfs.online",
    "lpfs.baselines",
    "lpfs.run",
    "lpfs.serving",
    "lpfs.sklearn",
    "lpfs.torchrec",
    "lpfs_kernels",
)
SPECIAL = ("__call__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__")


def interface() -> str:
    """All of it."""
    sections = [(name, package(importlib.import_module(name))) for name in PACKAGES]
    sections += [("torch.ops.lpfs", schemas()), ("command line", commands())]
    sections.append(("exit statuses", (f"{status.name} = {status:d}" for status in Status)))
    return "\n".join(f"[{title}]\n" + "".join(f"{line}\n" for line in s) for title, s in sections)


def package(module: ModuleType) -> Iterator[str]:
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from described_class(name, value)
        elif inspect.isfunction(value):
            yield f"{name}{signature(value)}"
        elif isinstance(value, dict):
            for key, entry in value.items():
                made = f"({', '.join(fields(entry).values())})" if name == "METHODS" else ""
                yield f"{name}[{key!r}]: {shown(entry)}{made}"
        else:
            yield f"{name} = {source(module, name)}"


def described_class(name: str, cls: type) -> Iterator[str]:
    """Its constructor, or the fields that make one, and its public members."""
    bases = [base.__name__ for base in cls.__mro__[:-1] if base not in ours(cls)]
    yield f"class {name}({bases[0]})" if bases else f"class {name}"
    if not is_record(cls) and is_written(cls.__init__):
        yield f"    __init__{signature(cls.__init__)}".removesuffix(" -> None")
    yield from (f"    {field}" for field in fields(cls).values())
    for member, value in members(cls):
        if isinstance(value, FunctionType | classmethod | staticmethod):
            before = f"{type(value).__name__} " if hasattr(value, "__func__") else ""
            yield f"    {before}{member}{signature(getattr(cls, member))}"
        else:
            yield f"    {member} -> {function_of(value).__annotations__.get('return')}"


def ours(cls: type) -> list[type]:
    """A class and those it inherits from, as far as they are from here; the class comes last."""
    return [base for base in cls.__mro__[::-1] if is_written(base)]


def is_written(thing: Any) -> bool:
    """Whether it comes from here, and not from a library or a decorator."""
    return getattr(thing, "__module__", "").split(".")[0] in ("lpfs", "lpfs_kernels")


def is_record(cls: type) -> bool:
    """Whether its fields make its constructor."""
    return dataclasses.is_dataclass(cls) or issubclass(cls, BaseModel | tuple)


def fields(cls: type) -> dict[str, str]:
    """What has an annotation in a class, with its default; of a record without constants."""
    found = {}
    for base in ours(cls):
        for name, annotation in inspect.get_annotations(base).items():
            # A NamedTuple makes references of the texts.
            annotation = getattr(annotation, "__forward_arg__", annotation)
            if not name.startswith("_") and not annotation.startswith("ClassVar"):
                found[name] = f"{name}: {annotation}{default_of(cls, name)}"
    return found


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that users may call, as they lie in the class."""
    found = {name: value for base in ours(cls) for name, value in vars(base).items()}
    for name, value in sorted(found.items()):
        public = not name.startswith("_") or name in SPECIAL
        if public and name not in fields(cls) and is_written(function_of(value)):
            yield name, value


def function_of(member: Any) -> Any:
    """What a property or a class method calls."""
    places = (getattr(member, name, None) for name in ("__func__", "fget", "func"))
    return next(filter(None, places), member)


def default_of(cls: Any, field: str) -> str:
    if dataclasses.is_dataclass(cls):
        found = {f.name: f for f in dataclasses.fields(cls)}.get(field)
        if found is not None and found.default_factory is not dataclasses.MISSING:
            return f" = {shown(found.default_factory())}"
        if found is not None:
            return "" if found.default is dataclasses.MISSING else f" = {shown(found.default)}"
    elif issubclass(cls, BaseModel) and field in cls.model_fields:
        info = cls.model_fields[field]
        return (
            "" if info.is_required() else f" = {shown(info.get_default(call_default_factory=True))}"
        )
    elif issubclass(cls, tuple):
        defaults = cls._field_defaults
        return f" = {shown(defaults[field])}" if field in defaults else ""
    return f" = {shown(vars(cls)[field])}" if field in vars(cls) else ""


def signature(function: Any) -> str:
    """Parameters with kinds, annotations and defaults, and what comes out."""
    found, words, kind = inspect.signature(function), [], None
    for parameter in found.parameters.values():
        if parameter.kind == parameter.KEYWORD_ONLY and kind not in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        ):
            words.append("*")
        kind = parameter.kind
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        word = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            word += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            word += f" = {shown(parameter.default)}"
        if parameter.name != "self":
            words.append(word)
    result = found.return_annotation
    end = "" if inspect.isclass(function) or result is found.empty else f" -> {result}"
    return f"({', '.join(words)}){end}"


def shown(value: Any) -> str:
    """A default; one that could not be written down says what it is."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(value.__qualname__)
    return repr(str(PurePath(value).as_posix()) if isinstance(value, PurePath) else value)


def source(module: ModuleType, name: str) -> str:
    """How a plain value or an alias is written where it is defined."""
    text = inspect.getsource(module)
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            home = "." * node.level + (node.module or "")
            return source(importlib.import_module(home, module.__name__), name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if [getattr(target, "id", None) for target in targets] == [name]:
            written = ast.get_source_segment(text, node.value)
            return " ".join((written or "").split())
    raise LookupError(f"{module.__name__}.{name}")


def schemas() -> list[str]:
    every = torch._C._jit_get_all_schemas()
    return sorted(str(schema) for schema in every if schema.name.startswith("lpfs::"))


def commands() -> Iterator[str]:
    """The options of the program and of every command; how completion is had is typer's."""
    group = get_command(app)
    completion = ("install_completion", "show_completion")
    yield "lpfs"
    yield from (option(p, "bool") for p in group.params if p.name not in completion)
    for name, command in sorted(group.commands.items()):
        yield f"lpfs {name}"
        types = typing.get_type_hints(inspect.unwrap(command.callback))
        yield from (option(p, kind(types[p.name])) for p in command.params)


def option(parameter: Any, type_: str) -> str:
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    default = "" if parameter.required else f" = {shown(parameter.default)}"
    return f"    {names}: {type_}{default}"


def kind(type_: Any) -> str:
    """The type of a value; with an ellipsis where there may be several."""
    arguments = [a for a in typing.get_args(type_) if a is not type(None)]
    if typing.get_origin(type_) is list:
        return f"{kind(arguments[0])}…"
    return kind(arguments[0]) if arguments else str(type_.__name__)


if __name__ == "__main__":
    FILE.write_text(interface(), encoding="utf-8")
