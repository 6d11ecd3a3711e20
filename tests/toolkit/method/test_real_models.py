"""Models of three libraries, without a changed line of theirs; skipped where these are not
installed. See `zoo` for what to install. LPFS_FULL=1 also restores each in a fresh process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lpfs

from .zoo import LIBRARIES, STEPS, Library, attach

# A history, where a model reads one, is of the first.
NAMES = ["f1", "f0", *(f"f{i}" for i in range(2, 8))]
INFORMATIVE = ["f1", "f3", "f4", "f6"]
VALUES, DIM = 20, 8
FIELDS = dict.fromkeys(NAMES, VALUES)
MODELS = [(library, kind) for library in LIBRARIES for kind in library.kinds]

ROOT = Path(__file__).parents[3]
FULL = os.environ.get("LPFS_FULL") == "1"
RESTORE = """
import sys, torch, lpfs
from tests.toolkit.method import test_real_models as here
place, package, kind = sys.argv[1:]
library, = (one for one in here.LIBRARIES if one.package == package)
model = lpfs.restore(library.build(kind, here.FIELDS, here.DIM), place).eval()
with torch.no_grad():
    scores = library.predict(model, here.batches(library, kind, 30_000)[0])
torch.save(scores, place + "/scores.pt")
"""

# What these libraries do when they are imported, and pandas before 3 among it.
pytestmark = pytest.mark.filterwarnings("ignore")


def log(rows: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Codes, histories that mean nothing, clicks."""
    generator = torch.Generator().manual_seed(0)
    codes = {name: torch.randint(1, VALUES, (rows,), generator=generator) for name in NAMES}
    effects = {name: torch.randn(VALUES, generator=generator) for name in INFORMATIVE}
    logits = sum(effects[name][codes[name]] for name in INFORMATIVE)
    assert isinstance(logits, Tensor)
    clicks = (torch.rand(rows, generator=generator) < logits.sigmoid()).float()
    return codes, torch.randint(1, VALUES, (rows, STEPS), generator=generator), clicks


def batches(library: Library, kind: str, rows: int) -> list[Any]:
    codes, histories, clicks = log(rows)
    parts = (slice(i, i + 100) for i in range(0, rows, 100))
    return [
        library.batch(kind, {n: c[p] for n, c in codes.items()}, histories[p], clicks[p])
        for p in parts
    ]


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("library", "kind"), MODELS, ids=[f"{library.package} {kind}" for library, kind in MODELS]
)
def test_half_of_the_fields_are_found_removed_and_restored(
    library: Library, kind: str, tmp_path: Path
) -> None:
    pytest.importorskip(library.module)
    torch.manual_seed(0)
    model: Any = library.build(kind, FIELDS, DIM)
    seen = batches(library, kind, 30_000)
    optimizer = library.optimizer(model)
    gate = attach(model, FIELDS)
    found = lpfs.shrink(model, optimizer, seen, library.loss, keep=4)
    assert sorted(gate.fields) == sorted(NAMES)
    assert sorted(found.kept) == INFORMATIVE

    model.eval(), found.model.eval()
    lpfs.save(found.model, tmp_path)
    restored: Any = lpfs.restore(library.build(kind, FIELDS, DIM), tmp_path).eval()
    with torch.no_grad():
        expected = library.predict(found.model, seen[0])
        # A factor is folded with the rounding that multiplying by it has: fields are the same.
        torch.testing.assert_close(expected, library.predict(model, seen[0]), rtol=0, atol=1e-6)
        assert torch.equal(library.predict(restored, seen[0]), expected)
    if FULL:
        command = [sys.executable, "-W", "ignore", "-c", RESTORE, str(tmp_path)]
        subprocess.run([*command, library.package, kind], cwd=ROOT, check=True)
        assert torch.equal(torch.load(tmp_path / "scores.pt"), expected)
    gone = parameters(model) - len(gate.x) - parameters(found.model)
    widths = sum(site.module.weight.shape[1] for site in gate.sites["f0"])  # type: ignore[union-attr, misc]
    assert gone >= 4 * VALUES * widths


def fuxictr() -> Library:
    (library,) = (one for one in LIBRARIES if one.package == "fuxictr")
    pytest.importorskip(library.module)
    return library


def test_the_one_adam_of_fuxictr_does_not_move_gates() -> None:
    """Compiled after gates came, its Adam holds their x too, which is found out."""
    library = fuxictr()
    model: Any = library.build("DeepFM", FIELDS, DIM)
    seen = batches(library, "DeepFM", 1_000)
    gate = attach(model, FIELDS)
    assert all(p is not gate.x for group in model.optimizer.param_groups for p in group["params"])
    model.compile("adam", "binary_crossentropy", 1e-3)
    with pytest.raises(ValueError, match=r"optimizer: holds gate\.x, which ProximalSGD moves"):
        lpfs.shrink(model, model.optimizer, seen, library.loss, keep=4)
    assert torch.equal(gate.x, torch.ones_like(gate.x))


def test_rows_of_all_samples_in_one_line_are_refused() -> None:
    library = fuxictr()
    model: Any = library.build("DCN", FIELDS, DIM)
    seen = batches(library, "DCN", 1_000)
    lpfs.attach(model)
    with pytest.raises(ValueError, match=r"\.item' returns \(500, 8\) for 100 samples: which of"):
        lpfs.shrink(model, model.optimizer, seen, library.loss, keep=4)
