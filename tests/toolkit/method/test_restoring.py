"""A pruned model comes back in a fresh process, from its code and what was saved."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lpfs
from lpfs.checksums import sealed, unsealed
from tests.toolkit.method.attachable import NUMBERED, DeepWide, Shapes
from tests.toolkit.method.test_removing import CODES, Awkward

ROOT = Path(__file__).parents[3]


def pruned(model: nn.Module, dead: list[int], fields: dict[str, str] | None = None) -> nn.Module:
    gate = lpfs.attach(model, fields, example=CODES)
    gate.x.data.copy_(torch.linspace(0.4, 1.2, len(gate.x)))
    gate.x.data[dead] = 0
    return lpfs.prune(model)[0].eval()


def test_it_predicts_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    smaller = pruned(DeepWide(rows=7), [0, 3])
    lpfs.save(smaller, tmp_path / "run")
    torch.save((CODES, smaller(CODES)), tmp_path / "expected.pt")
    program = (
        "import sys, torch, lpfs\n"
        "from tests.toolkit.method.attachable import DeepWide\n"
        "codes, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "model = lpfs.restore(DeepWide(rows=7), sys.argv[1] + '/run').eval()\n"
        "assert torch.equal(model(codes), expected)\n"
        "assert isinstance(model.deep['a'], lpfs.Removed)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)


@pytest.mark.parametrize("dead", [[], [0], [1, 2], [3, 4]])
def test_factors_beside_weights_and_shared_weights_come_back(
    tmp_path: Path, dead: list[int]
) -> None:
    torch.manual_seed(0)
    smaller = pruned(Awkward(), dead)
    lpfs.save(smaller, tmp_path)
    built = Awkward()
    restored = lpfs.restore(built, tmp_path)
    assert torch.equal(restored(CODES), smaller(CODES))
    assert sum(p.numel() for p in restored.parameters()) == sum(
        p.numel() for p in smaller.parameters()
    )
    assert not isinstance(built.normed, lpfs.Removed)
    lpfs.save(restored, tmp_path / "again")
    again = lpfs.restore(Awkward(), tmp_path / "again")
    assert torch.equal(again(CODES), smaller(CODES))


def test_another_model_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(FileNotFoundError, match=r"removal\.json"):
        lpfs.restore(Shapes(), tmp_path)
    gated = Shapes()
    lpfs.save(pruned(gated, [0], NUMBERED), tmp_path)
    with pytest.raises(ValueError, match="has a gate; prune it first"):
        lpfs.save(gated, tmp_path)
    with pytest.raises(ValueError, match="has a gate; restore into one without"):
        lpfs.restore(gated, tmp_path)
    with pytest.raises(ValueError, match=r"lacks 'one', which .*removal\.json names"):
        lpfs.restore(DeepWide(), tmp_path)
    wider = Shapes()
    wider.one = nn.Embedding(7, 9)
    with pytest.raises(ValueError, match=r"'one' is Embedding, the one that was removed"):
        lpfs.restore(wider, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        lpfs.restore(Shapes(rows=9), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "removal.json"])
def test_a_changed_bit_is_found_and_named(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    lpfs.save(pruned(DeepWide(rows=7), [0, 3]), tmp_path)
    place = tmp_path / name
    whole = place.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        bit = whole[at] ^ 1 << at % 8
        place.write_bytes(whole[:at] + bytes([bit]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=name):
            lpfs.restore(DeepWide(rows=7), tmp_path)
    for content in (b"", whole[:-1], whole + b" ", bytes(len(whole))):
        place.write_bytes(content)
        if content != whole + b" " or name != "removal.json":  # JSON has a blank for nothing
            with pytest.raises(ValueError, match=name):
                lpfs.restore(DeepWide(rows=7), tmp_path)
    place.write_bytes(whole)
    lpfs.restore(DeepWide(rows=7), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"removed": None},
        {"removed": {"deep.a": {}}},
        {"factors": 3},
        {"columns": [{}]},
        {"thinned": {"deep.b": 1}},
        {"weights": None},
    ],
)
def test_a_removal_of_somebodys_making_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    lpfs.save(pruned(DeepWide(rows=7), [0, 3]), tmp_path)
    place = tmp_path / "removal.json"
    place.write_bytes(sealed(unsealed(place.read_bytes()) | change))
    with pytest.raises(ValueError, match=r"removal\.json"):
        lpfs.restore(DeepWide(rows=7), tmp_path)
    place.write_text('{"removed": {}}')
    with pytest.raises(ValueError, match=r"removal\.json: it has no CRC-32"):
        lpfs.restore(DeepWide(rows=7), tmp_path)


def test_what_cannot_be_copied_is_the_models_own(tmp_path: Path) -> None:
    lpfs.save(pruned(DeepWide(rows=7), [0, 3]), tmp_path)
    built = DeepWide(rows=7)
    built.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^cannot pickle '_thread\.lock' object$"):
        lpfs.restore(built, tmp_path)
