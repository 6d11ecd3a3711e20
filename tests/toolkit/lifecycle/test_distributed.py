"""Two processes select what one selects."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lpfs import Settings, select
from lpfs.data import Batch, ClickLog, InOrder, Recipe, load
from lpfs.lifecycle import distributed
from lpfs.run import load_summary

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="there is no torch.distributed here",
)

RECIPE = Recipe(
    rows=10_000,
    informative=3,
    informative_numbers=1,
    copies=0,
    nested=1,
    noise=4,
    noise_numbers=1,
    many_values=(30, 60),
    strong=0.6,
    weak=0.3,
    interaction=0.3,
)
QUICK = {"keep": 3, "dim": 4, "batch_size": 32, "epochs": 0}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "clicks.parquet"
    ClickLog(RECIPE).write(path)
    return path


def torchrun(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes; every temporary directory lies in `directory`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_select(log: Path, tmp_path: Path) -> None:
    """One directory, one voice, the same steps and fields as one process, and as good."""
    out, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    select_ = "-m", "lpfs", "select", log, "--label=click", "--in-order", *options
    run = torchrun(scratch, *select_, "--out", out)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Written to") == 1
    assert [path.name for path in tmp_path.iterdir() if path != scratch] == ["run"]
    assert not list(scratch.glob("lpfs-*"))

    summary = load_summary(out)
    data = load(log, label="click", split=InOrder(test=0.2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = select(data, Settings.model_validate(QUICK))
    torch.set_num_threads(threads)
    assert summary.kept == alone.kept
    assert summary.steps == alone.steps
    assert summary.gates == pytest.approx(alone.gates, rel=0.05)
    for name, metrics in alone.metrics.items():
        assert summary.metrics[name].log_loss == pytest.approx(metrics.log_loss, abs=2e-3)


def test_bad_input(log: Path, tmp_path: Path) -> None:
    """What one process finds ends all, said once, with nothing left behind."""
    out = tmp_path / "run"
    run = torchrun(tmp_path, "-m", "lpfs", "select", log, "--keep=3", "--out", out)
    (complaint,) = (line for line in run.stderr.splitlines() if line.startswith("lpfs:"))
    assert complaint.startswith(f"lpfs: {log}: ")
    assert "exitcode  : 2" in run.stderr
    assert not out.exists()
    assert not list(tmp_path.glob("lpfs-*"))


PROGRAM = """
import sys
from pathlib import Path
import torch
from lpfs import Settings, select
from lpfs.lifecycle import distributed
from lpfs.data import InOrder, load

here = Path(sys.argv[1])

def gradients():
    rank = distributed.rank()
    dense, sparse, none = (torch.nn.Parameter(torch.zeros(3, 2)) for _ in range(3))
    dense.grad = torch.full((3, 2), 1.0 + rank)
    rows = [[0, 2, 2], [1]][rank]
    values = torch.full((len(rows), 2), 10.0 + rank)
    sparse.grad = torch.sparse_coo_tensor([rows], values, (3, 2), check_invariants=True)
    distributed.sum_gradients([dense, sparse, none])
    assert none.grad is None
    return dense.grad, sparse.grad.to_dense()

with distributed.joined():
    data = load(sys.argv[2], label="click", split=InOrder(test=0.2), cache=here / "cache")
    results = []
    for learn in ("costs", "gradient"):
        # The last batch of 127 in 2,160 rows is one row: the second process has none.
        settings = Settings(keep=3, dim=4, batch_size=127, learn=learn, epochs=2)
        s = select(data, settings)
        weights = torch.cat([p.detach().flatten() for p in s.model.parameters()])
        results.append((weights, [s.kept, s.gates, s.metrics, s.steps, s.losses]))
    torch.save((gradients(), results), here / f"{distributed.rank()}.pt")
    sys.exit()
"""


def test_all_processes_end_with_the_same_bits(log: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = torchrun(tmp_path, program, tmp_path, log)
    assert run.returncode == 0, run.stderr
    ended = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for (dense, sparse), _ in ended:
        assert torch.equal(dense, torch.full((3, 2), 3.0))
        assert sparse.tolist() == [[10.0, 10.0], [11.0, 11.0], [20.0, 20.0]]
    for (weights, rest), (other_weights, other_rest) in zip(
        *(runs for _, runs in ended), strict=True
    ):
        assert torch.equal(weights, other_weights)
        assert rest == other_rest


def test_a_process_that_fails_ends_the_others(log: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    failure = "if distributed.rank() == 1: raise RuntimeError('on its own')"
    program.write_text(PROGRAM.replace("    results = []", f"    {failure}"))
    begun = time.monotonic()
    run = torchrun(tmp_path, program, tmp_path, log)
    assert run.returncode != 0
    assert run.stderr.count("RuntimeError: on its own") == 1
    assert time.monotonic() - begun < distributed.STEP_TIMEOUT.total_seconds() / 2


def test_alone_there_is_nothing_to_do() -> None:
    batch = Batch(torch.ones(3, 1), torch.ones(3, 1), torch.ones(3))
    assert distributed.share(batch) is batch
    assert distributed.slice_of(7) == slice(0, 7)
    assert distributed.exchange("x") == ["x"]
    (rows,) = distributed.gather(batch.labels)
    assert rows is batch.labels
    distributed.require_same("anything", 0)
