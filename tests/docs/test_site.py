"""The site builds without a warning, stands alone, and is whole in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

from ..toolkit.browser import needs_browser, opened

DOCS = Path(__file__).parents[2] / "docs"
LOOKED_AT = ("index", "how-it-works", "guides/own-log", "reference/lpfs", "results/operators")
MEASURE = """<script>addEventListener("load", () => {
const wide = [...document.querySelectorAll("article *")].filter(e => e.scrollWidth > innerWidth
  && getComputedStyle(e).overflowX === "visible" && !e.closest(".table-wrapper, pre, math"));
document.title = `${document.documentElement.scrollWidth} of ${innerWidth}, `
  + `${getComputedStyle(document.body).backgroundColor}, `
  + `${[...document.images].filter(i => !i.naturalWidth).length} missing, ${wide.length} wide`;
})</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    # The pictures are drawn into the sources' folder.
    source = place / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("pictures", "__pycache__"))
    for beside in ("README.md", "CHANGELOG.md", "bench", "experiments"):
        (place / beside).symlink_to(DOCS.parent / beside)
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", place / "doctrees"]
    done = subprocess.run(
        [*build, source, place / "site"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return place / "site"


def test_pages_refer_to_nothing_outside(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<m[ion]\b[^>]*>\s*\\", text), f"{page}: a formula was not understood"
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]*)"', text)
        loaded += re.findall(r'<link\b[^>]*\bhref="([^"]*)"', text)
        assert loaded
        for address in loaded:
            assert not re.match(r"\w+:|//", address), (page, address)
            there = page.parent / re.split(r"[?#]", address)[0]
            assert there.exists(), (page, address)
        for address in re.findall(r'<a\b[^>]*\bhref="([^"#:]+)(?:#[^"]*)?"', text):
            assert (page.parent / address).exists(), (page, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text()), style
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 4 * 2**20


def test_everything_public_is_in_the_reference(site: Path) -> None:
    import lpfs
    import lpfs.baselines
    import lpfs.data
    import lpfs.models
    import lpfs.run
    import lpfs.serving
    import lpfs_kernels
    from lpfs.cli import app

    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    ids = set(re.findall(r'id="([^"]*)"', text))
    packages = (
        lpfs,
        lpfs.data,
        lpfs.models,
        lpfs.run,
        lpfs.serving,
        lpfs.baselines,
        lpfs_kernels,
    )
    names = {f"{package.__name__}.{name}" for package in packages for name in package.__all__}
    # Aliases of types and plain values have no docstrings.
    assert not {name for name in names - ids if isinstance(named(name), type | FunctionType)}
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert commands
    assert {f"lpfs-{name}" for name in commands} <= ids


def named(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)


@needs_browser
@pytest.mark.parametrize(
    ("width", "scheme", "background"),
    [(1280, 1, "rgb(255, 255, 255)"), (500, 0, "rgb(19, 20, 22)")],
    ids=["wide and light", "narrow and dark"],
)
def test_pages_in_a_browser(
    site: Path, tmp_path: Path, width: int, scheme: int, background: str
) -> None:
    for name in LOOKED_AT:
        page = site / f"{name}.html"
        measured = page.with_name(f"{page.stem}-{width}.html")
        measured.write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
        dark_or_light = f"--blink-settings=preferredColorScheme={scheme}"
        left = opened(measured, width, dark_or_light, "--hide-scrollbars")
        (title,) = re.findall(r"<title>(\d+ of .*?)</title>", left)
        assert title == f"{width} of {width}, {background}, 0 missing, 0 wide", name
