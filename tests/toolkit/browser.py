"""Reading a page strictly, and opening it in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "br", "link", "img", "input", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


class Page(HTMLParser):
    """A strict reader: every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data + " "

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            has for name, has in self.elements if name == tag and attributes.items() <= has.items()
        ]


def check_alone(text: str) -> None:
    """A page refers to nothing outside, and knows dark screens, narrow ones and paper."""
    assert not re.search(r'https?:|//[a-z]|@import|url\(|<link|<img|src=|href=(?!"#)', text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


def probed(page: str, script: str) -> str:
    """A page with one more script, which its policy would not let run."""
    assert page.count("Content-Security-Policy") == 1
    return page.replace("Content-Security-Policy", "x").replace("</body>", script)


def opened(path: Path, width: int, *options: str, complains: bool = False) -> str:
    """The page as a browser of that width leaves it, whose console must stay empty unless it is to
    complain."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--enable-logging=stderr", f"--user-data-dir={path}-user"),
            *(f"--window-size={width},900", *options, "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ("CONSOLE" in done.stderr) == complains, done.stderr
    return done.stdout
