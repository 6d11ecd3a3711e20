"""Selection on a model that TorchRec shards over processes; the lines that lpfs needs end so.

    torchrun --standalone --nproc-per-node 2 examples/torchrec/train.py

needs TorchRec, see docs/guides/torchrec.md.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import lpfs.torchrec  # lpfs

FEATURES = ["hour", "device", "ad", "noise 1", "noise 2", "noise 3"]
CODES, STEPS, ROWS = 1000, 600, 256


class Ranking(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=f"table of {name}",
                embedding_dim=16,
                num_embeddings=CODES,
                feature_names=[name],
            )
            for name in FEATURES
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device="meta")
        self.top = nn.Sequential(
            nn.Linear(16 * len(FEATURES), 32, device="meta"),
            nn.ReLU(),
            nn.Linear(32, 1, device="meta"),
        )

    def forward(self, features):
        embeddings = self.tables(features).to_dict()
        return self.top(torch.cat([embeddings[name] for name in FEATURES], 1)).squeeze(1)


def shard(model):
    """By TorchRec's planner; tables learn in backward, the rest as usual."""
    apply_optimizer_in_backward(torch.optim.Adagrad, model.tables.parameters(), {"lr": 0.05})
    sharded = DistributedModelParallel(model, device=torch.device("cpu"))
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    optimizer = KeyedOptimizerWrapper(dense, lambda p: torch.optim.Adagrad(p, lr=0.05))
    return sharded, CombinedOptimizer([sharded.fused_optimizer, optimizer])


def batch(step):
    """This process's rows: a click needs the right hour and device, and an ad that is good."""
    generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
    codes = torch.randint(CODES, (len(FEATURES), ROWS), generator=generator)
    hour, device, ad = (codes[:3] % 10 > 4).float()
    click = torch.rand(ROWS, generator=generator) < torch.sigmoid(3 * (hour + device + ad) - 4)
    lengths = torch.ones_like(codes).flatten()
    return KeyedJaggedTensor(FEATURES, codes.flatten(), lengths=lengths), click.float()


def main(directory):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, optimizer = shard(Ranking())
    gate = lpfs.torchrec.attach(model)  # lpfs
    prox = lpfs.ProximalSGD([gate.x])  # lpfs
    plan = lpfs.Budget(gate, prox, keep=3, steps=STEPS)  # lpfs
    for step in range(STEPS):
        features, click = batch(step)
        loss = nn.functional.binary_cross_entropy_with_logits(model(features), click)
        loss.backward()
        optimizer.step()
        prox.step(), plan.step()  # lpfs
        optimizer.zero_grad(), prox.zero_grad()  # lpfs

    lpfs.torchrec.save(model, optimizer, directory)  # lpfs
    smaller, optimizer = lpfs.torchrec.restore(Ranking(), shard, directory)  # lpfs
    features, _ = batch(STEPS)
    with torch.no_grad():
        change = (model.eval()(features) - smaller.eval()(features)).abs().max()
    dist.all_reduce(change, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print("kept:", ", ".join(gate.kept()))
        print("tables:", *(n for n in smaller.state_dict() if "table of" in n), sep="\n  ")
        print(f"removal changed no logit by more than {change:.0e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    place = sys.argv[1:] or [tempfile.gettempdir() + "/torchrec-selection"]
    main(*place)
