"""What the repository says about itself agrees."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import lpfs

from .matrix import RISING

ROOT = Path(__file__).parents[2]


def test_every_version_is_the_same() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (packaged,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert citation["version"] == packaged == lpfs.__version__
    assert citation["preferred-citation"]["title"].startswith("LPFS: Learnable Polarizing")
    assert len(citation["preferred-citation"]["authors"]) == 11


def test_the_lowest_versions_are_those_that_were_tried() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    tried = (ROOT / "tests" / "packaging" / "matrix.md").read_text()
    for package in RISING:
        (least,) = re.findall(rf'^    "{package}>=([\d.]+)[";]', project, re.M)
        runs = re.findall(rf"^\| {package} ([\d.]+) \| runs \|$", tried, re.M)
        same = [one for one in runs if f"{one}.".startswith(f"{least}.")]
        assert same, f"{package}: {least} is admitted, tried were {', '.join(runs)}"


def test_issues_ask_for_the_environment() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert templates
    for template in templates:
        form = yaml.safe_load(template.read_text())
        assert {"name", "description", "body"} <= set(form)
        labels = [part["attributes"]["label"] for part in form["body"]]
        assert any("`lpfs env`" in label for label in labels), template.name
