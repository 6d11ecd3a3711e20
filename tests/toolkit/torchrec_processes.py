"""What processes of tests/toolkit/test_torchrec_sharded.py do: select on a sharded model."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lpfs
import lpfs.torchrec

FEATURES = ["user", "item", "clicked", "noise", "more"]
"""The label is made of `user` and `clicked`."""
TABLES = {
    "of_users": ["user"],
    "of_items": ["item", "clicked"],
    "of_noise": ["noise"],
    "of_more": ["more", "user"],
}
KEYS = ["clicked", "item", "more", "noise", "user@of_more", "user@of_users"]
CODES, STEPS, ROWS, KEEP = 40, 60, 64, 2


def collection(dim: int, device: str, weighted: bool) -> Any:
    import torchrec

    tables = [
        torchrec.EmbeddingBagConfig(
            name=name, embedding_dim=dim, num_embeddings=CODES, feature_names=features
        )
        for name, features in TABLES.items()
    ]
    return torchrec.EmbeddingBagCollection(tables=tables, is_weighted=weighted, device=device)


class Ranking(nn.Module):
    """Two collections. A table serves two features, and a feature is served by two tables."""

    def __init__(self, device: str = "meta", weighted: bool = False) -> None:
        super().__init__()
        self.deep, self.wide = collection(8, device, weighted), collection(4, device, weighted)
        self.top = nn.Sequential(
            nn.Linear(48, 16, device=device), nn.ReLU(), nn.Linear(16, 1, device=device)
        )

    def forward(self, features: Any) -> Tensor:
        deep, wide = self.deep(features).to_dict(), self.wide(features).to_dict()
        joined = torch.cat([deep[name] for name in KEYS], 1)
        of_wide = torch.stack([wide[name].sum(1) for name in KEYS]).sum(0)
        out: Tensor = self.top(joined).squeeze(1) + of_wide
        return out


class Sequences(nn.Module):
    """The same of a collection of sequences: the mean of each feature's values, which hangs on how
    many there are."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        import torchrec

        tables = [
            torchrec.EmbeddingConfig(
                name=name, embedding_dim=8, num_embeddings=CODES, feature_names=features
            )
            for name, features in TABLES.items()
        ]
        self.items = torchrec.EmbeddingCollection(tables=tables, device=torch.device(device))
        self.top = nn.Sequential(
            nn.Linear(48, 16, device=device), nn.ReLU(), nn.Linear(16, 1, device=device)
        )

    def forward(self, features: Any) -> Tensor:
        found = self.items(features)
        means = []
        for key in KEYS:
            values, lengths = found[key].values(), found[key].lengths()
            rows = torch.arange(len(lengths)).repeat_interleave(lengths)
            total = values.new_zeros(len(lengths), 8).index_add(0, rows, values)
            # A row without values is told from one whose values are zeros.
            means.append((total + lengths[:, None].clamp(max=1)) / lengths[:, None].clamp(min=1))
        out: Tensor = self.top(torch.cat(means, 1)).squeeze(1)
        return out


BUILT: dict[str, Callable[[], nn.Module]] = {
    "bags": Ranking,
    "weighted": lambda: Ranking(weighted=True),
    "sequences": Sequences,
}


def batch(step: int, part: slice, weighted: bool = False) -> tuple[Any, Tensor]:
    """Bags of up to two codes, some of them empty; the rows of one process."""
    import torchrec

    generator = torch.Generator().manual_seed(step)
    codes = torch.randint(CODES, (len(FEATURES), ROWS, 2), generator=generator)
    lengths = torch.randint(3, (len(FEATURES), ROWS), generator=generator)
    lengths[[0, 2]] = 1
    label = (codes[0, :, 0] + codes[2, :, 0] > CODES).float()
    codes, lengths = codes[:, part], lengths[:, part]
    there = torch.arange(2) < lengths.unsqueeze(2)
    weights = (1 + codes[there] % 3).float() / 2 if weighted else None
    features = torchrec.KeyedJaggedTensor(
        FEATURES, codes[there], weights, lengths=lengths.flatten()
    )
    return features, label[part]


def shard(kind: str, fused: str = "Adagrad") -> Any:
    """How a user shards: planner, fused optimiser in backward, dense optimiser."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
    from torchrec.optim.optimizers import in_backward_optimizer_filter

    def only(sharder: Any) -> Any:
        # Rows too, which TorchRec's own offers on GPUs alone.
        kinds: Any = {"sharding_types": lambda self, compute_device_type: [kind]}
        return type("Only", (sharder,), kinds)()

    optimizers = {
        "Adagrad": torch.optim.Adagrad,
        "RowWiseAdagrad": RowWiseAdagrad,
    }

    def sharded(model: nn.Module) -> tuple[nn.Module, Any]:
        tables = [
            p for m in model.modules() if isinstance(m, nn.EmbeddingBag) for p in m.parameters()
        ]
        apply_optimizer_in_backward(optimizers[fused], tables, {"lr": 0.1})
        narrowest = 4 if kind == "column_wise" else None
        constraints = {
            name: ParameterConstraints(sharding_types=[kind], min_partition=narrowest)
            for module in model.modules()
            for name in (
                getattr(module, "embedding_bags", None) or getattr(module, "embeddings", ())
            )
        }
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
            constraints=constraints,
        )
        sharders = [only(EmbeddingBagCollectionSharder), only(EmbeddingCollectionSharder)]
        plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
        parallel = DistributedModelParallel(
            model, device=torch.device("cpu"), plan=plan, sharders=sharders
        )
        dense = KeyedOptimizerWrapper(
            dict(in_backward_optimizer_filter(parallel.named_parameters())),
            lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
        )
        return parallel, CombinedOptimizer([parallel.fused_optimizer, dense])

    return sharded


def fill(model: nn.Module) -> None:
    """Weights that depend on their names alone, however they are sharded."""
    for name, value in model.state_dict().items():
        if "lpfs_gate" in name:
            continue
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        whole = 0.1 * torch.randn(value.shape, generator=generator)
        if not hasattr(value, "local_shards"):
            value.copy_(whole)
            continue
        for part in value.local_shards():
            offsets, sizes = part.metadata.shard_offsets, part.metadata.shard_sizes
            rows, columns = (slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
            part.tensor.copy_(whole[rows, columns])


def learn(model: Any, optimizer: Any, gate: Any, part: slice, weighted: bool, **plan: Any) -> Any:
    """A selection; its removal costs after the first step, and the plan."""
    prox = lpfs.ProximalSGD([gate.x])
    moves = lpfs.Budget(gate, prox, keep=KEEP, steps=STEPS, **plan)
    first = None
    for step in range(STEPS):
        features, label = batch(step, part, weighted)
        loss = nn.functional.binary_cross_entropy_with_logits(model(features), label)
        loss.backward()
        optimizer.step(), prox.step()
        if first is None:
            assert moves.costs is not None
            first = moves.costs.known.clone()
        moves.step()
        optimizer.zero_grad(), prox.zero_grad()
    return first, moves


def logits(model: nn.Module, weighted: bool) -> Tensor:
    """Of rows that all processes have; every process must take part."""
    model.eval()
    with torch.no_grad():
        found: Tensor = model(batch(1000, slice(None), weighted)[0])
    return found


def one_step(model: Any, optimizer: Any, rank: int, size: int, weighted: bool) -> Tensor:
    """Logits after one more step of the weights."""
    model.train()
    features, label = batch(2000, slice(rank, None, size), weighted)
    nn.functional.binary_cross_entropy_with_logits(model(features), label).backward()
    optimizer.step(), optimizer.zero_grad()
    return logits(model, weighted)


def join(rank: int, size: int, meet: str) -> None:
    """Meet the other processes at that file, in silence."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size)


def process(rank: int, size: int, place: str, cases: Sequence[Any], results: Any) -> None:
    """Select, save and restore, with a kind of sharding each before and after."""
    join(rank, size, f"{place}/meet{size}")
    for number, (before, after, fused, kind, options) in enumerate(cases):
        weighted, new = kind == "weighted", BUILT[kind]
        model, optimizer = shard(before, fused)(new())
        fill(model)
        with pytest.raises(ValueError, match=r"is sharded by TorchRec; use lpfs\.torchrec\.attach"):
            lpfs.attach(model)
        gate = lpfs.torchrec.attach(model)
        first, plan = learn(model, optimizer, gate, slice(rank, None, size), weighted, **options)
        found = {
            "first": first,
            "x": gate.x.detach().clone(),
            "known": plan.costs.known,
            "kept": gate.kept(),
            "gated": logits(model, weighted),
        }
        # What the gate makes of its state must be made again when that is loaded.
        gate.scale.fill_(7.0)
        model.load_state_dict(model.state_dict())
        found["reloaded"] = logits(model, weighted)
        directory = Path(place) / f"of {size} {number}"
        lpfs.torchrec.save(model, optimizer, directory)
        smaller, left = lpfs.torchrec.restore(new(), shard(after, fused), directory)
        found["smaller"] = logits(smaller, weighted)
        found["names"] = sorted(smaller.state_dict())
        found["trained on"] = one_step(smaller, left, rank, size, weighted)
        # Gates that do not move are factors beside the tables.
        found["gated on"] = one_step(model, optimizer, rank, size, weighted)
        results[size, number, rank] = found
    dist.destroy_process_group()


def again(rank: int, size: int, place: str, directories: Sequence[Any], results: Any) -> None:
    """Restore what another number of processes has saved."""
    join(rank, size, f"{place}/again{size}")
    for number, (name, after, fused, kind) in enumerate(directories):
        weighted, saved = kind == "weighted", Path(place) / name
        smaller, left = lpfs.torchrec.restore(BUILT[kind](), shard(after, fused), saved)
        found = {"smaller": logits(smaller, weighted)}
        found["trained on"] = one_step(smaller, left, rank, size, weighted)
        results["again", number, rank] = found
    dist.destroy_process_group()


class Loss(nn.Module):
    """What a pipeline of TorchRec's trains: batch → loss and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Ranking()

    def forward(self, given: Any) -> tuple[Tensor, Tensor]:
        found = self.inner(given.features)
        return nn.functional.binary_cross_entropy_with_logits(found, given.label), found


class Batch:
    """What it takes."""

    def __init__(self, features: Any, label: Tensor) -> None:
        self.features, self.label = features, label

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(self.features.to(device), self.label.to(device))

    def record_stream(self, stream: Any) -> None:
        """There is none."""

    def pin_memory(self) -> Batch:
        return self


def pipelined(rank: int, size: int, place: str, results: Any) -> None:
    """The same selection step by step, and in a pipeline that distributes batches in advance."""
    join(rank, size, f"{place}/meet")
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
    from torchrec.streamable import Pipelineable

    Pipelineable.register(Batch)
    for way in ("steps", "pipeline"):
        model, optimizer = shard("table_wise")(Loss())
        fill(model)
        gate = lpfs.torchrec.attach(model)
        prox = lpfs.ProximalSGD([gate.x])
        plan = lpfs.Budget(gate, prox, keep=KEEP, steps=STEPS, watch_every=4)
        pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
        batches = (Batch(*batch(step, slice(rank, None, size))) for step in range(STEPS))
        for _ in range(STEPS):
            if way == "pipeline":
                pipeline.progress(batches)
            else:
                model(next(batches))[0].backward()
                optimizer.step(), optimizer.zero_grad()
            prox.step(), plan.step(), prox.zero_grad()
        results[way, rank] = gate.x.tolist(), gate.kept()
    dist.destroy_process_group()


def stopped(rank: int, size: int, place: str, kind: str, die_at: int, results: Any) -> None:
    """A selection with a checkpoint every ten steps, killed after a step, or resumed."""
    join(rank, size, f"{place}/meet{size}{die_at}")
    model, optimizer = shard(kind)(Ranking())
    fill(model)
    gate = lpfs.torchrec.attach(model)
    prox = lpfs.ProximalSGD([gate.x])
    plan = lpfs.Budget(gate, prox, keep=KEEP, steps=STEPS)
    directory = Path(place) / "checkpoints"
    begin = lpfs.torchrec.resume(plan, model, optimizer, directory)
    for step in range(begin, STEPS):
        features, label = batch(step, slice(rank, None, size))
        nn.functional.binary_cross_entropy_with_logits(model(features), label).backward()
        optimizer.step(), prox.step(), plan.step()
        optimizer.zero_grad(), prox.zero_grad()
        if plan.taken % 10 == 0:
            lpfs.torchrec.checkpoint(plan, model, optimizer, directory)
        if plan.taken == die_at and rank == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    assert plan.costs is not None
    seen = gate.x.tolist(), gate.amplitude.tolist(), plan.costs.known, plan.trajectory.table()
    results[size, rank] = begin, *seen, logits(model, weighted=False)
    dist.destroy_process_group()
