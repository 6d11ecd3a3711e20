"""A selection on sharded tables that was killed goes on, with as many processes or others."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from lpfs.files import write_durably
from lpfs.method.plan import Plan
from lpfs.torchrec.handing import load, ready, several, state_of, wait

LAST, SELECTION = "last", "selection.pt"


def checkpoint(plan: Plan, model: nn.Module, optimizer: Any, directory: str | Path) -> None:
    """Write all of a selection: tables and optimiser state by name, gates and plan.

    Every process writes its own shards and all of them call this after the same step. What was
    written last is taken away once the new one is whole.

    Args:
        plan: of the model's gates.
        model: with gates, from `attach`.
        optimizer: as of `save`.
        directory: which all processes see; made where it is not there.
    """
    directory, first = Path(directory), not several() or dist.get_rank() == 0
    name = f"step-{plan.taken}"
    if first:
        directory.mkdir(parents=True, exist_ok=True)
        # Of one that was killed while it wrote.
        shutil.rmtree(directory / name, ignore_errors=True)
    wait()
    save_checkpoint(
        state_of(model, optimizer), checkpoint_id=str(directory / name), no_dist=not several()
    )
    if first:
        selection = {
            "gate": plan.gate.state_dict(),
            "gates": plan.optimizer.state_dict(),
            "plan": plan.state_dict(),
        }
        content = io.BytesIO()
        torch.save(selection, content)
        write_durably(directory / name / SELECTION, content.getvalue())
        write_durably(directory / LAST, name.encode())
        for other in directory.glob("step-*"):
            if other.name != name:
                shutil.rmtree(other)
    wait()


def resume(plan: Plan, model: nn.Module, optimizer: Any, directory: str | Path) -> int:
    """Go on from the last checkpoint; after how many steps of the plan that was, 0 where there is
    none. The number of processes and the sharding may be others.

    Args:
        plan, model, optimizer: made as they were for the selection that was written, with gates.
        directory: where `checkpoint` wrote.

    Raises ValueError where the optimiser keeps something else, as `restore` does.
    """
    last = Path(directory) / LAST
    if not last.exists():
        return 0
    place = Path(directory) / last.read_text(encoding="utf-8")
    ready(optimizer)
    load(state_of(model, optimizer), model, optimizer, place)
    selection = torch.load(place / SELECTION, weights_only=True, map_location=plan.gate.x.device)
    plan.gate.load_state_dict(selection["gate"])
    plan.optimizer.load_state_dict(selection["gates"])
    plan.load_state_dict(selection["plan"])
    return plan.taken
