"""What users may rely on changes on purpose or not at all."""

from __future__ import annotations

import difflib
import importlib
import inspect

import pytest

from .interface import FILE, PACKAGES, SPECIAL, function_of, interface, is_written, members


def test_the_interface_is_the_written_one() -> None:
    written = FILE.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(written, interface().splitlines(), lineterm="", n=1))
    advice = "If it should be so: python -m tests.packaging.interface, and a line in CHANGELOG.md"
    assert not changes, "\n".join(["The public interface changed.", *changes, advice])


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_is_explained(package: str) -> None:
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    public = {name: value for name, value in public.items() if is_written(value)}
    for name, value in list(public.items()):
        if inspect.isclass(value):
            methods = {m: function_of(found) for m, found in members(value) if m not in SPECIAL}
            public |= {f"{name}.{m}": found for m, found in methods.items()}
    assert public
    silent = {name for name, value in public.items() if not explained(name, value)}
    assert not silent, f"without a docstring in {package}: {', '.join(sorted(silent))}"


def explained(name: str, value: object) -> bool:
    """Whether it has words of its own, not those that a dataclass makes up."""
    words = value.__doc__ or ""
    return bool(words) and not words.startswith(f"{name}(")
