"""Modules by the names of fields, which are any text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from torch import nn

TAKEN = frozenset(dir(nn.ModuleDict()))
"""What an `nn.ModuleDict` calls something else."""


class FieldDict(nn.ModuleDict):
    """An `nn.ModuleDict` whose names are any text: `user.id`, `type`, `items`, `a/b, c`, none.

    `nn.ModuleDict` refuses a name with a dot and the names of its own methods. Here such a name
    stands in `state_dict` and among qualified names percent-encoded; everywhere else it is itself,
    and `lpfs.attach` reads it.

    Raises TypeError for a name that is no text.

    >>> tables = FieldDict({"user.id": nn.Embedding(3, 2), "items": nn.Embedding(5, 2)})
    >>> list(tables), "user.id" in tables, tables["items"]
    (['user.id', 'items'], True, Embedding(5, 2))
    >>> list(tables.state_dict())
    ['user%2Eid.weight', '%69tems.weight']
    """

    def __getitem__(self, key: str) -> nn.Module:
        try:
            return super().__getitem__(encoded(key))
        except KeyError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(encoded(key), module)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        super().__delitem__(encoded(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(encoded(key))

    def __iter__(self) -> Iterator[str]:
        return map(decoded, self._modules)

    def keys(self) -> Any:
        """The names, in order."""
        return dict.fromkeys(self).keys()

    def items(self) -> Any:
        """Names and modules, in order."""
        return dict(zip(self, self._modules.values(), strict=True)).items()

    def pop(self, key: str) -> nn.Module:
        """Take a module out. Raises KeyError for a name that is not there."""
        module = self[key]
        del self[key]
        return module


def encoded(name: str) -> str:
    """A field's name as a part of a qualified name, which may stand in an `nn.ModuleDict`."""
    if not isinstance(name, str):
        raise TypeError(f"a field's name must be text, got {name!r}")
    part = name.replace("%", "%25").replace(".", "%2E")
    if not part:
        return "%"
    if part in TAKEN:
        return f"%{ord(part[0]):02X}{part[1:]}"
    return part


def decoded(part: str) -> str:
    """The name of a field from a part of a qualified name that `encoded` made."""
    return "" if part == "%" else unquote(part)
