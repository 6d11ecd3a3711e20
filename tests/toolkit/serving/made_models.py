"""Models that nobody trained, of any fields."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from lpfs.data import (
    BinEncoder,
    CategoryEncoder,
    Encoder,
    HashEncoder,
    ListEncoder,
    NumberEncoder,
)
from lpfs.data.encode import fit_times
from lpfs.models import DLRM, DeepFM
from lpfs.run import Values

WORDS = [f"w{i}" for i in range(20)]
TIMES = np.arange(0.0, 90 * 86400, 5000.0)
ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        CategoryEncoder(name="city", values=WORDS),
        CategoryEncoder(name="hour", values=[*map(str, range(24))], form="number", nulls=("off",)),
        CategoryEncoder(name="mobile", values=["true", "false"], form="truth"),
        HashEncoder(name="user_id", buckets=50, form="number"),
        ListEncoder(
            name="tags", of=CategoryEncoder(name="tags", values=WORDS), separator="|", last=3
        ),
        ListEncoder(name="seen", of=HashEncoder(name="seen", buckets=30)),
        BinEncoder(name="age", edges=[18.5, 40.0, 65.0]),
        *fit_times("ts", TIMES),
        NumberEncoder(name="price", transform="log", mean=1.0, scale=2.0),
        NumberEncoder(
            name="spend", transform="quantile", knots=[0.0, 10.0, 20.0], scores=[-1.0, 0.0, 1.0]
        ),
    )
}


def made_model(fields: Iterable[str], seed: int = 0) -> DLRM:
    """A network whose probabilities differ from row to row and from seed to seed."""
    encoders = [ENCODERS[name] for name in fields]
    torch.manual_seed(seed)
    model = DeepFM(
        {encoder.name: encoder.cardinality for encoder in encoders},
        dim=4,
        top=(16,),
        lists=[encoder.name for encoder in encoders if isinstance(encoder, ListEncoder)],
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def made_values() -> dict[str, Values]:
    """What `version.json` says of the fields."""
    return {
        name: Values(
            kind="list" if isinstance(encoder, ListEncoder) else "category",
            why="made",
            distinct=20,
            unknown=0.01,
            missing=0.0,
        )
        for name, encoder in ENCODERS.items()
    }
