"""lpfs show and lpfs report: everything about a run, in the terminal and on a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lpfs.report.page import page
from lpfs.run import Summary, load_history, load_summary

from ..browser import Page, check_alone, needs_browser, opened, probed
from ..command import QUICK, below, lpfs, succeed
from ..made_run import made_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    log = place / "log <b>&.parquet"
    succeed("generate", log, "--rows", 3000)
    options = ["--label", "click", "--keep", 8, "--always-keep", "C1", "--seed", 7, *QUICK]
    succeed("select", log, "--out", place / "run", *options)
    return place / "run"


def test_the_page_holds_the_run(run: Path) -> None:
    summary, text = load_summary(run), (run / "report.html").read_text()
    page = Page(text)
    said = " ".join(page.text.split())
    for name in summary.gates:
        assert f" {name} " in said
    torch = summary.versions["torch"]
    assert len(page.all("tr", **{"class": "kept"})) == 8
    assert len(page.all("tr", **{"class": "gone"})) == 19
    curves = [has for has in page.all("polyline") if "data-i" in has]
    # Removal costs, and then gates.
    assert len(curves) == 2 * 27
    for i, has in enumerate(curves):
        points = [tuple(map(float, p.split(","))) for p in (has["points"] or "").split()]
        assert len(points) == summary.steps["select"]
        assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in points)
        assert i < 27 or (points[-1][1] == 1000) == (has["class"] == "gone")
    for cost in summary.costs.values():
        assert f"{100 * cost.share:.1f} %".replace("-0.0", "0.0").replace("-", "−") in said
    for metrics in summary.metrics.values():
        assert f"{metrics.auc:.4f}" in said
        assert f"{metrics.log_loss:.4f}" in said
    for death in summary.died:
        assert f"{death.name} {death.step}" in said
    for setting in ("keep 8", "always_keep C1", "batch_size 64", "seed 0", f"torch {torch}"):
        assert setting in said
    assert "always kept, without a gate" in said
    assert "log <b>&.parquet : 8 of 27 fields kept" in said


def test_the_page_needs_nothing_else(run: Path) -> None:
    check_alone((run / "report.html").read_text())


def test_report_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert "Written to" in succeed("report", run, "--out", out)
    assert out.read_bytes() == (run / "report.html").read_bytes()
    for bad, words in (
        ([run, "--out", out], ["page.html", "already exists"]),
        ([run, "--out", tmp_path / "page.pdf"], ["--out", ".html"]),
        ([tmp_path, "--out", tmp_path / "new.html"], ["directory of a run", "selection.json"]),
    ):
        before = below(tmp_path)
        ended = lpfs("report", *bad)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert all(word in ended.err for word in words)
        assert below(tmp_path) == before


def test_show(run: Path, tmp_path: Path) -> None:
    summary, said = load_summary(run), succeed("show", run)
    for name in summary.kept:
        assert f" {name} " in said
        assert f"{summary.gates[name]:+.3f}" in said
    for death in summary.died:
        assert f" {death.name} " in said
    for metrics in summary.metrics.values():
        assert f"{metrics.auc:.4f}" in said
    assert "learning from removal costs" in said
    ended = lpfs("show", tmp_path / "none")
    assert (ended.status, ended.out) == (2, "")
    assert "expected the directory of a run" in ended.err


def changed(run: Path, **changes: object) -> tuple[Summary, dict[str, list[float]]]:
    summary = load_summary(run).model_dump() | changes
    return Summary.model_validate(summary), load_history(run)


def test_odd_runs_have_a_page_too(run: Path) -> None:
    one = {name: values[-1:] for name, values in load_history(run).items()}
    Page(page(load_summary(run), one))
    constant = load_history(run)
    for column in ("epsilon", "lam", "loss", "alive"):
        constant[column] = [0.1] * len(constant[column])
    Page(page(load_summary(run), constant))
    everything = {"kept": [*load_summary(run).gates], "died": []}
    none_died, history = changed(run, **everything, source="", first_step_change=0.5)
    assert "No field was removed" in Page(page(none_died, history)).text
    notes = {"C1": "<script>alert(1)</script>"}
    assert "<script>alert" not in page(changed(run, notes=notes)[0], history)


def test_the_first_chart_is_the_curve_and_the_chosen_number() -> None:
    text = page(*made_run(fields=12, kept=5))
    said = " ".join(Page(text).text.split())
    assert "5 of 12 fields: the fewest within one standard error of the best (7)" in said
    assert text.index('<section id="curve"') < text.index('<section id="predictions"')
    upright = re.search(r'class="upright[^"]*" style="left: ([\d.]+)%"><span>5 chosen', text)
    assert upright is not None
    # Of an axis from 1 to 12.
    assert float(upright[1]) == pytest.approx(100 * 4 / 11, abs=0.01)
    band = re.search(r'<polygon points="([^"]+)"', text)
    assert band is not None
    assert len(band[1].split()) == 2 * 12
    asked = page(*made_run(fields=12, kept=5, wish=True))
    assert "5 kept" in asked
    assert "standard error of the best" not in asked
    for chart in ("curve", "costs", "gates"):
        assert f'<section id="{chart}"' in asked


def test_the_fields_stand_in_the_order_of_their_costs() -> None:
    text = page(*made_run(fields=12, kept=5))
    rows = re.findall(r'<tr data-i="(\d+)"', text)
    assert [*map(int, rows)] == [*range(12)]
    said = " ".join(Page(text).text.split())
    assert "f0 0.02000 ± 0.00050 40.0 %" in said
    assert "f5 0.00233 ± 0.00050 4.7 % 0 decayed, step 26 f0 took its place (93 %)" in said


def test_gates_that_learn_from_the_gradient_have_a_page_without_costs() -> None:
    text = page(*made_run(wish=True, costs=False))
    assert "removal cost" not in Page(text).text.lower()
    assert '<section id="costs"' not in text


def test_a_thousand_fields() -> None:
    text = page(*made_run(fields=1000, kept=900))
    curves = [has for has in Page(text).all("polyline") if "data-i" in has]
    assert len(curves) == 2 * 1000
    assert len(text) < 4_000_000


POINT = """
<script>
const plot = document.querySelector("#gates .big svg"), box = plot.getBoundingClientRect();
const curve = document.querySelector("#curve svg"), at = curve.getBoundingClientRect();
curve.dispatchEvent(new PointerEvent("pointermove", {
  bubbles: true, clientX: at.left + 1, clientY: at.top + 9 }));
document.body.dataset.number = document.querySelector("#curve .tip").innerText;
const cost = document.querySelector("#costs svg"), there = cost.getBoundingClientRect();
cost.dispatchEvent(new PointerEvent("pointermove", {
  bubbles: true, clientX: there.right - 1, clientY: there.top }));
document.body.dataset.cost = document.querySelector("#costs .tip").innerText;
plot.dispatchEvent(new PointerEvent("pointermove", {
  bubbles: true, clientX: box.right - 1, clientY: box.bottom }));
document.body.dataset.tip = document.querySelector("#gates .tip").innerText;
document.body.dataset.picked = document.querySelectorAll("#gates polyline.on").length;
document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
document.body.dataset.drawn = [...document.querySelectorAll("polyline")]
  .filter(line => line.getBoundingClientRect().width > 40).length;
document.body.dataset.ink = getComputedStyle(document.querySelector("polyline.kept")).stroke;
</script></body>"""


@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize(
    ("scheme", "ink"),
    [("1", "rgb(22, 104, 184)"), ("0", "rgb(98, 168, 238)")],
    ids=["light", "dark"],
)
def test_in_a_browser(run: Path, tmp_path: Path, width: int, scheme: str, ink: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(probed((run / "report.html").read_text(), POINT))
    left = opened(path, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert 'data-ready="27"' in left
    assert 'data-picked="19"' in left
    assert re.search(r'data-tip="19 fields\s+step \d+ · gate 0"', left)
    assert re.search(r'data-number="8 fields kept · log loss\s+validation rows\s+0\.\d{4}', left)
    assert re.search(r'data-cost="C?I?\d+\s+step \d+ · nats 0\.0', left)
    assert 'data-wide="false"' in left
    assert f'data-ink="{ink}"' in left
    drawn = re.search(r'data-drawn="(\d+)"', left)
    assert drawn is not None
    # The curve, costs, gates, and small ones; sparks where there is room.
    assert int(drawn[1]) >= 1 + 27 + 27 + 4 + (27 if width > 640 else 0)


HOSTILE = [
    "</style></script><script>document.body.dataset.mine = 1</script>",
    '"><img src=x onerror="document.body.dataset.mine = 1">',
    "javascript:document.body.dataset.mine=1",
    "{{ 7 * 7 }}",
    "=cmd|' /C calc'!A1",
    "a\0b\nc\x1b[2J",
]


@needs_browser
def test_a_page_runs_no_script_but_its_own(tmp_path: Path) -> None:
    summary, history = made_run(fields=len(HOSTILE), kept=3)
    names = dict(zip([f"f{i}" for i in range(len(HOSTILE))], HOSTILE, strict=True))
    text = summary.model_dump_json()
    for name, hostile in names.items():
        text = text.replace(f'"{name}"', json.dumps(hostile))
        history = {k.replace(f":{name}", f":{hostile}"): v for k, v in history.items()}
    hostile_run = Summary.model_validate_json(text).model_copy(
        update={"source": HOSTILE[0], "notes": dict.fromkeys(HOSTILE, HOSTILE[1])}
    )
    path = tmp_path / "page.html"
    path.write_text(page(hostile_run, history))
    left = opened(path, 1200)
    assert "data-mine" not in left.replace("dataset", "")
    assert f'data-ready="{len(HOSTILE)}"' in left
    # Even what would stand in the page as it is.
    script = "<script>document.body.dataset.mine = 1</script></body>"
    path.write_text(page(hostile_run, history).replace("</body>", script))
    left = opened(path, 1200, complains=True)
    assert "<body data-mine" not in left
    path.write_text(probed(page(hostile_run, history), script))
    assert "<body data-mine" in opened(path, 1200)
