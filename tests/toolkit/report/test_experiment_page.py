"""lpfs report of an experiment: its statistics, its page in a browser, its pictures, its faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lpfs.report.arms import Panel, foremost, panels, standing
from lpfs.report.curves import Series, axis, chart, decades
from lpfs.report.experiment import page
from lpfs.report.results import Results, load_results
from lpfs.report.sections.gates import traced
from lpfs.report.sections.reach import curves
from lpfs.report.sections.settings import penalised, variations
from lpfs.report.statistics import area, difference, estimate, polarisation

from .. import made_results as made
from ..browser import Page, check_alone, needs_browser, opened, probed
from ..command import below, check_picture, lpfs, succeed


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("place") / "experiment"
    made.write(directory)
    return directory


@pytest.fixture(scope="module")
def results(directory: Path) -> Results:
    return load_results(directory)


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return page(results)


def said(text: str) -> str:
    return " ".join(Page(text).text.split())


def test_estimates() -> None:
    found = estimate([0.70, 0.72, 0.74, 0.80])
    assert found.mean == pytest.approx(0.74)
    # The deviations are −.04, −.02, 0 and .06: √(.0056 / 3) / 2.
    assert found.error == pytest.approx(0.0216025, rel=1e-5)
    assert (found.low, found.high, found.count) == (0.70, 0.80, 4)
    assert estimate([0.5]).error is None
    with pytest.raises(ValueError, match="values must not be empty"):
        estimate([])


def test_areas() -> None:
    assert area({4: 0.5, 6: 0.7, 10: 0.9}) == pytest.approx((2 * 0.6 + 4 * 0.8) / 6)
    assert area({10: 0.9, 4: 0.5, 6: 0.7}) == area({4: 0.5, 6: 0.7, 10: 0.9})
    assert area({7: 0.3}) == 0.3
    with pytest.raises(ValueError, match="curve must have a point"):
        area({})


def test_differences_are_paired() -> None:
    ours, theirs = {0: 0.60, 1: 0.70, 2: 0.80}, {0: 0.61, 1: 0.71, 2: 0.81, 3: 0.1}
    gap = difference(ours, theirs)
    assert gap is not None
    assert (gap.mean, gap.count) == (pytest.approx(0.01), 3)
    assert gap.error == pytest.approx(0, abs=1e-12)
    assert difference(ours, {7: 1.0}) is None


def test_polarisation() -> None:
    assert polarisation([0.0, 0.0, 1.0, 1.0]) == 0.5
    assert polarisation([0.0, 0.0, 3.0, -3.0]) == 0.5
    assert polarisation([0.4, 0.4]) == 0
    assert polarisation([0.0, 0.0]) == 0
    # The mean is ¼: ¼ from three of them and ¾ from one.
    assert polarisation([0.0, 0.0, 0.0, 2.0]) == pytest.approx(0.375)


def test_axes() -> None:
    marks, low, high = axis(0.6512, 0.7321, 5)
    assert ([mark.text for mark in marks], low, high) == (
        ["0.64", "0.66", "0.68", "0.70", "0.72", "0.74"],
        pytest.approx(0.64),
        pytest.approx(0.74),
    )
    assert axis(-0.004, 0.001, 5)[0][0].text == "−0.004"
    marks, low, high = decades([2e-7, 0.3])
    assert (low, high) == (-7, 0)
    assert [mark.text for mark in marks] == ["1e-07", "1e-05", "0.001", "0.1"]
    assert marks[-1].at == pytest.approx(100 * 6 / 7, abs=0.01)
    for flat in (3.0, 0.0, -2.0):
        drawn = chart("flat", [made_series([flat, flat])], labels={1: "1", 2: "2"})
        assert all(0 <= float(p.split(",")[1]) <= 1000 for p in drawn.lines[0].points.split())


def made_series(values: list[float]) -> Series:
    return Series("one", 0, range(1, len(values) + 1), values)


def test_methods_are_compared_on_equal_terms(results: Results) -> None:
    first, second = panels(results)
    assert (first.title, second.title) == ("synthetic noise 1 · dlrm", "synthetic noise 2 · dlrm")
    # No settings, no gates that learn from seen rows, no given λ; ours first, controls last.
    assert [(arm.title, arm.rows_of_gates) for arm in first.standard] == [
        ("removal costs", "one-pass"),
        ("LPFS++", "one-pass"),
        ("LPFS", "one-pass"),
        ("group LASSO", "one-pass"),
        ("permutation", "one-pass"),
        ("random", "one-pass"),
    ]
    assert first.budgets() == [4, 6, 10]
    assert first.seeds == [0, 1, 2]


def test_a_variation_with_the_defaults_stands_for_its_method(results: Results) -> None:
    first = panels(results)[0]
    panel = Panel(first.data, first.model)
    for row in first.rows:
        if row.method == "lpfs++" and row.settings == {"alpha": 50.0}:
            panel.add(row)
            panel.add(row.model_copy(update={"settings": {"alpha": 30.0}}))
            panel.add(row.model_copy(update={"settings": {"tau": 2.0}}))
    assert [arm.title for arm in panel.standard] == ["LPFS++ α 30"]
    varied = Panel(first.data, first.model)
    for row in first.rows:
        if row.method == "lpfs++" and row.settings.keys() == {"alpha"}:
            varied.add(row)
    assert [arm.title for arm in varied.standard] == ["LPFS++ α 50", "LPFS++ α 100"]


def test_rows_that_were_seen_are_told_apart(results: Results) -> None:
    first = panels(results)[0]
    panel = Panel(first.data, first.model)
    for row in first.rows:
        panel.add(row)
        if "lam" in row.settings or "alpha" in row.settings:
            panel.add(row.model_copy(update={"rows_of_gates": "same-rows"}))
    assert panel.usual == "one-pass"
    table = penalised(panel)
    assert table is not None
    assert [row[1].text for row in table.tables[0][1].rows] == ["10", "50"]
    assert [title for title, _ in traced(panel, results)] == [
        "λ or a price given",
        "a budget given",
    ]
    assert [len(lines) for _, lines in traced(panel, results)] == [2, 8]
    varied = variations(panel)
    assert varied is not None
    assert [title for title, _ in varied.tables] == [
        "LPFS++: α",
        "LPFS++, same-rows: α",
        "LPFS++: τ",
    ]


def written_auc(method: str, retrain: str, data: str = "synthetic noise 1") -> dict[int, Any]:
    found: dict[int, dict[int, float]] = {}
    for row in made.cells():
        standard = row["settings"] == "{}" and row["rows_of_gates"] == "one-pass"
        if standard and (row["method"], row["retrain"], row["data"]) == (method, retrain, data):
            found.setdefault(row["seed"], {})[row["keep"]] = row["auc"]
    return found


@pytest.mark.parametrize("retrain", ["cold", "hot", "none"])
def test_areas_of_the_page_are_those_of_the_rows(text: str, retrain: str) -> None:
    areas = {
        method: np.array(
            [
                (auc[4] + auc[6]) / 2 * 2 / 6 + (auc[6] + auc[10]) / 2 * 4 / 6
                for auc in written_auc(method, retrain).values()
            ]
        )
        for method in made.METHODS
    }
    shown = said(text)
    for method, values in areas.items():
        mean, error = values.mean(), values.std(ddof=1) / np.sqrt(3)
        assert f"{mean:.4f} ± {error:.4f}" in shown
        if method != "removal-costs":
            gaps = values - areas["removal-costs"]
            gap = f"{gaps.mean():+.4f} ± {gaps.std(ddof=1) / np.sqrt(3):.4f}".replace("-", "−")
            assert gap in shown


@pytest.mark.parametrize("metric", ["AUC", "Log loss", "Accuracy"])
def test_the_best_areas_are_bold(results: Results, metric: str) -> None:
    part = curves(panels(results)[0], dict.fromkeys(panels(results)[0].standard, 0))
    assert part is not None
    rows = dict(part.tables)[f"{metric}: areas"].rows
    bold = {row[0].text for row in rows if row[1].strong}
    # The best, and what is within its standard error, .0017: seeds are .003 apart.
    assert {"removal costs"} <= bold <= {"removal costs", "permutation", "LPFS++"}


def test_where_ours_stands(results: Results) -> None:
    first = panels(results)[0]
    stands = standing(first, "cold")
    assert stands is not None
    assert (stands.rival, stands.rank, stands.count) == ("permutation", 1, 6)
    assert stands.verdict == "ahead"

    def moved(by: float, noise: float = 0.0) -> Panel:
        panel = Panel(first.data, first.model)
        for row in first.rows:
            ours = row.method == "removal-costs" and row.auc is not None
            shift = by + noise * (row.seed - 1)
            panel.add(row.model_copy(update={"auc": row.auc + shift}) if ours else row)
        return panel

    behind = standing(moved(-0.02), "cold")
    assert behind is not None
    assert (behind.verdict, behind.rank) == ("behind", 5)
    level = standing(moved(0.0, noise=0.01), "cold")
    assert level is not None
    assert level.verdict == "level"
    # Behind one rival by little but surely counts, whatever a wavering one reaches.
    wavering = Panel(first.data, first.model)
    for row in first.rows:
        assert row.auc is not None
        shift = {"permutation": 0.003, "lpfs": 0.005 + 0.02 * (row.seed - 1)}.get(row.method, 0.0)
        wavering.add(row.model_copy(update={"auc": row.auc + shift}))
    stands = standing(wavering, "cold")
    assert stands is not None
    assert (stands.rival, stands.verdict, stands.rank) == ("permutation", "behind", 3)
    none = Panel("a", "b")
    assert standing(none, "cold") is None
    assert foremost(none) is None
    # Four are informative, so that of 4, 6 and 10 only 4 counts; random finds fewer there.
    assert foremost(first) == (1, 1)
    fewer = Panel(first.data, first.model)
    for row in first.rows:
        ours = row.method == "removal-costs"
        fewer.add(row.model_copy(update={"informative_found": 3}) if ours else row)
    assert foremost(fewer) == (0, 1)


def test_a_seed_without_all_budgets_has_no_area(results: Results) -> None:
    first = panels(results)[0]
    panel = Panel(first.data, first.model)
    for row in first.rows:
        if (row.method, row.keep, row.seed) != ("lpfs", 6, 1):
            panel.add(row)
    lpfs_ = next(arm for arm in panel.standard if arm.method == "lpfs")
    assert set(panel.areas(lpfs_, "cold", lambda row: row.auc)) == {0, 2}


def test_the_page_has_every_section(text: str) -> None:
    page, shown = Page(text), said(text)
    sections = [has["id"] for has in page.all("section")]
    assert sections == [
        *("short", "curves", "informative", "distribution", "zeros", "settings", "penalty"),
        *("revival", "masks", "rows", "removal", "cost", "failed", "run"),
    ]
    assert "made <up> & small" in shown
    assert "retrained cold permutation ahead 1 of 6 0.71" in shown
    assert "rival synthetic noise 1 · dlrm synthetic noise 2 · dlrm LPFS++ +0.00" in shown
    assert "DivergedError: <b>loss</b> is nan" in shown
    assert "216 cells done 1 cells failed 6 methods 3 seeds" in shown
    for what in ("torch 2.13.0", "a processor", "seeds 0, 1, 2", "data.rows 1,000", "2026-11-24"):
        assert what in shown
    assert "method[1].name lpfs++" in shown
    assert "l1, synthetic noise 1 · dlrm lr 0.1" in shown
    assert "a trial of tuning ValueError: too few rows" in shown
    for method in ("removal costs", "LPFS++", "group LASSO", "permutation", "random"):
        assert f" {method} " in shown
    # Table 2: the three budgets of ours and the paper's, twelve fields each, in both panels.
    assert shown.count("111100000000") == 6
    assert len([i for i in page.all("i") if (i.get("title") or "").endswith("of 3")]) == 2 * 3 * 36
    # Table 1.
    assert re.search(r"LPFS\+\+ 10 0\.004 6\.0 ± 0\.6", shown)
    # Gates that have seen their rows lose .006, up to noise.
    assert re.search(r"LPFS\+\+ one-pass 0\.7[01]\d\d ± 0\.\d+ −0\.00[56]\d ± 0\.\d+", shown)


def test_the_page_needs_nothing_else(text: str) -> None:
    check_alone(text)


def test_charts_show_the_rows(text: str) -> None:
    lines = re.findall(
        r'<g class="c0 first" data-name="removal costs"[^>]*>.*?<polyline points="([^"]*)"', text
    )
    y = [float(point.split(",")[1]) for point in lines[0].split()]
    mean = np.mean(
        [list(auc.values()) for auc in written_auc("removal-costs", "cold").values()], axis=0
    )
    low, high = re.findall(r'data-y="([^"]*)"', text)[0].split(",")
    shown = float(low) + (1 - np.array(y) / 1000) * (float(high) - float(low))
    np.testing.assert_allclose(shown, mean, atol=(float(high) - float(low)) / 1e4)


def test_only_what_rows_allow(tmp_path: Path) -> None:
    rows = [
        row
        for row in made.cells()
        if row["method"] == "permutation" and row["seed"] == 0 and row["retrain"] == "cold"
    ]
    for row in rows:
        row |= {"informative_found": None, "change_largest": None, "noise_kept": None}
        row |= {"pretrain_seconds": None, "select_seconds": None}
    made.write(tmp_path, rows)
    text = page(load_results(tmp_path))
    assert [has["id"] for has in Page(text).all("section")] == ["curves", "distribution", "run"]
    assert "− ours" not in said(text)
    failed = [row for row in made.cells() if row["error"] is not None]
    assert failed[0]["keep"] is None
    made.write(tmp_path, failed)
    text = page(load_results(tmp_path))
    assert [has["id"] for has in Page(text).all("section")] == ["failed", "run"]
    made.write(tmp_path, [])
    assert [has["id"] for has in Page(page(load_results(tmp_path))).all("section")] == ["run"]


def test_a_log_without_truth_has_masks_without_marks(tmp_path: Path) -> None:
    made.write(tmp_path)
    gates = pyarrow.parquet.read_table(tmp_path / "gates.parquet")
    unknown = gates.set_column(4, "role", pa.nulls(len(gates), pa.string()))
    pyarrow.parquet.write_table(unknown, tmp_path / "gates.parquet")
    text = page(load_results(tmp_path))
    assert "masks" in [has["id"] for has in Page(text).all("section")]


def test_large_experiments_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {f"method {i}": -i / 1000 for i in range(15)}
    monkeypatch.setattr(made, "METHODS", methods | {"removal-costs": 0.0, "lpfs": -0.001})
    monkeypatch.setattr(made, "FIELDS", 378)
    monkeypatch.setattr(made, "ROLES", ["informative"] * 20 + ["noise"] * 358)
    monkeypatch.setattr(made, "BUDGETS", (10, 20, 40, 80, 120, 180, 250, 320))
    monkeypatch.setattr(made, "SEEDS", (0, 1))
    made.write(tmp_path, [row for row in made.cells() if "1" in row["data"]])
    text = page(load_results(tmp_path))
    Page(text)
    assert len(text) < 500_000
    assert "removal costs, first seed" in said(text)


def test_report_from_the_command_line(directory: Path, tmp_path: Path) -> None:
    pictures = {"auc.png", "gates.png", "zeros.png", "alpha.png"}
    assert "Written to" in succeed("report", directory)
    assert {path.name for path in directory.glob("*.png")} == pictures
    for name in pictures:
        check_picture(directory / name)
    written = (directory / "report.html").read_bytes()
    succeed("report", directory)  # a resumed experiment is reported again
    out = tmp_path / "page.html"
    succeed("report", directory, "--out", out)
    assert out.read_bytes() == written == (directory / "report.html").read_bytes()
    assert below(tmp_path) == {out}
    ended = lpfs("report", directory, "--out", out)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "page.html: already exists" in ended.err


def test_faults_are_one_line(directory: Path, tmp_path: Path) -> None:
    def fault(change: Any, *words: str) -> None:
        made.write(tmp_path / "x")
        change(tmp_path / "x")
        before = below(tmp_path)
        ended = lpfs("report", tmp_path / "x")
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert all(word in ended.err for word in words), ended.err
        assert below(tmp_path) == before

    def without_auc(place: Path) -> None:
        table = pa.parquet.read_table(place / "cells.parquet").drop_columns(["auc"])
        pa.parquet.write_table(table, place / "cells.parquet")

    def misspelt(place: Path) -> None:
        rows = list(made.cells())
        made.write(place, [rows[0] | {"retrain": "warm"}, *rows[1:]])

    def other_version(place: Path) -> None:
        content = json.loads((place / "experiment.json").read_text())
        (place / "experiment.json").write_text(json.dumps(content | {"schema_version": 2}))

    fault(without_auc, "cells.parquet", "'auc'")
    fault(misspelt, "cells.parquet", "0.retrain", "'none', 'cold' or 'hot'")
    fault(other_version, "experiment.json", "schema_version")
    fault(lambda place: (place / "experiment.json").write_text("{"), "experiment.json")
    fault(lambda place: (place / "gates.parquet").write_text("no"), "gates.parquet")


POINT = """
<script>
const chart = document.querySelector("#curves .chart.big");
const box = chart.querySelector("svg").getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {
  bubbles: true, clientX: box.left + box.width * .34, clientY: box.bottom }));
const body = document.body.dataset, all = selector => [...document.querySelectorAll(selector)];
body.tip = chart.querySelector(".tip").innerText.replace(/\\s+/g, " ");
body.picked = all("#curves .part:first-of-type g.on").length;
const chip = document.querySelector(".chips button");
chip.click();
body.hidden = all("g.hidden").length;
chip.click();
body.shown = all("g.hidden").length;
const head = document.querySelector("#curves .sorts th:nth-child(2)");
const rows = head.closest("table").tBodies[0].rows;
const column = () => [...rows].map(row => row.cells[0].innerText.trim()).join();
head.click();
body.falling = column();
head.click();
body.rising = column();
body.wide = document.documentElement.scrollWidth > innerWidth;
body.drawn = all("figure.lines svg").filter(svg => {
  const box = svg.getBoundingClientRect();
  const lines = [...svg.querySelectorAll("polyline, path")];
  return box.height > 60 && lines.some(line => line.getBoundingClientRect().width > 20);
}).length;
body.ink = getComputedStyle(document.querySelector("#curves g.first polyline")).stroke;
</script></body>"""


@needs_browser
@pytest.mark.parametrize(
    ("width", "scheme", "ink"),
    [(500, "1", "rgb(22, 104, 184)"), (1200, "0", "rgb(98, 168, 238)")],
    ids=["narrow and light", "wide and dark"],
)
def test_in_a_browser(text: str, tmp_path: Path, width: int, scheme: str, ink: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(probed(text, POINT))
    left = opened(path, width, f"--blink-settings=preferredColorScheme={scheme}")

    def told(name: str) -> str:
        found = re.search(f'data-{name}="([^"]*)"', left[left.index("<body") :])
        assert found is not None, name
        return found[1]

    charts = text.count('<figure class="lines')
    assert f'data-ready="{charts}"' in left
    assert told("drawn") == str(charts)
    assert told("tip").startswith("6 fields kept · AUC removal costs 0.71")
    assert told("tip").index("permutation 0.7") < told("tip").index("random 0.6")
    assert told("picked") == "11"  # random, in each of the first panel's charts
    assert (told("hidden"), told("shown")) == ("11", "0")
    ranked = "removal costs,permutation,LPFS++,LPFS,group LASSO,random"
    assert told("falling") == ranked
    assert told("rising") == ",".join(reversed(ranked.split(",")))
    assert told("wide") == "false"
    assert told("ink") == ink
