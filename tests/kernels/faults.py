"""What is wrong with arguments, and what every implementation says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .row_steps import RowStep

WIDE = torch.ones(8, 2)
GATED_CONCAT: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": []}, "embeddings must hold at least one tensor, got none"),
    ({"kind": 7}, "kind must be an index from 0 to 4, got 7"),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
    ({"tau": 0.0}, "tau must be positive, got 0"),
    (
        {"widths": [2, 2]},
        "embeddings must hold one packed tensor when widths are given, got 2",
    ),
    (
        {"embeddings": [WIDE.int(), WIDE]},
        "embeddings[0] must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        {"embeddings": [WIDE, WIDE.half()]},
        "embeddings[1] must be float32 like embeddings[0], got float16",
    ),
    (
        {"embeddings": [WIDE, WIDE[:, 0]]},
        "embeddings[1] must have 2 dimensions, got shape [8]",
    ),
    (
        {"embeddings": [WIDE, WIDE[1:]]},
        "embeddings[1] must have 8 rows like embeddings[0], got 7",
    ),
    (
        {"embeddings": [WIDE], "widths": [3, -1]},
        "widths[1] must be at least 0, got -1",
    ),
    (
        {"embeddings": [WIDE], "widths": [1, 2]},
        "widths must add up to the 2 columns of embeddings[0], got 3",
    ),
    ({"x": torch.ones(2).half()}, "x must be float32 for float32 embeddings, got float16"),
    ({"x": torch.ones(3)}, "x must have shape [2], one element per field, got [3]"),
    ({"epsilon": torch.tensor(0.1).double()}, "epsilon must be float32 like x, got float64"),
    ({"epsilon": torch.ones(1)}, "epsilon must have shape [], got [1]"),
    ({"scale": torch.ones(2).double()}, "scale must be float32 like x, got float64"),
    ({"scale": torch.ones(2, 1)}, "scale must have shape [2] like x, got [2, 1]"),
    ({"ungated": torch.ones(2).byte()}, "ungated must be bool, got uint8"),
    ({"ungated": torch.ones(1).bool()}, "ungated must have shape [2] like x, got [1]"),
    ({"epsilon": torch.tensor(-0.1)}, "epsilon must be positive and finite, got -0.1"),
    ({"epsilon": torch.tensor(0.0)}, "epsilon must be positive and finite, got 0"),
    ({"epsilon": torch.tensor(float("nan"))}, "epsilon must be positive and finite, got nan"),
    ({"epsilon": torch.tensor(float("inf"))}, "epsilon must be positive and finite, got inf"),
    ({"x": torch.tensor([0.0, float("nan")])}, "x must not be NaN, got nan at position 1"),
]

CUBE = torch.ones(8, 2, 2)
PAIRS = torch.tensor([[0, -1], [1, -1], [0, 1]])
GATED_CROSS_CONCAT: list[tuple[dict[str, Any], str]] = [
    ({"kind": 7}, "kind must be an index from 0 to 4, got 7"),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
    ({"tau": 0.0}, "tau must be positive, got 0"),
    (
        {"embeddings": CUBE.int()},
        "embeddings must be float64, float32, float16 or bfloat16, got int32",
    ),
    ({"embeddings": CUBE[0]}, "embeddings must have 3 dimensions, got shape [2, 2]"),
    ({"pairs": PAIRS.int()}, "pairs must be int64, got int32"),
    ({"pairs": PAIRS[0]}, "pairs must have shape [P, 2], got [2]"),
    ({"pairs": PAIRS.T}, "pairs must have shape [P, 2], got [2, 3]"),
    *(
        (
            {"pairs": torch.tensor([[0, -1], pair, [0, 1]])},
            f"pairs must name two of the 2 fields, or one and -1, got {pair} at position 1",
        )
        for pair in ([2, -1], [-1, 0], [0, -2], [0, 2], [2**40, 0])
    ),
    (
        {"pairs": torch.tensor([[1, 0], [1, -1], [0, 1]])},
        "pairs must differ from each other, got [0, 1] at position 2 after [1, 0] at position 0",
    ),
    (
        {"pairs": torch.tensor([[1, -1], [1, 1], [1, -1]])},
        "pairs must differ from each other, got [1, -1] at position 2 after [1, -1] at position 0",
    ),
    ({"x": torch.ones(3).half()}, "x must be float32 for float32 embeddings, got float16"),
    ({"x": torch.ones(2)}, "x must have shape [3], one element per pair, got [2]"),
    ({"before": True}, "x must have shape [2], one element per field, got [3]"),
    ({"epsilon": torch.tensor(0.1).double()}, "epsilon must be float32 like x, got float64"),
    ({"epsilon": torch.ones(1)}, "epsilon must have shape [], got [1]"),
    ({"scale": torch.ones(3).double()}, "scale must be float32 like x, got float64"),
    ({"scale": torch.ones(3, 1)}, "scale must have shape [3] like x, got [3, 1]"),
    ({"ungated": torch.ones(3).byte()}, "ungated must be bool, got uint8"),
    ({"ungated": torch.ones(1).bool()}, "ungated must have shape [3] like x, got [1]"),
    ({"epsilon": torch.tensor(0.0)}, "epsilon must be positive and finite, got 0"),
    ({"x": torch.tensor([0, float("nan"), 1])}, "x must not be NaN, got nan at position 1"),
]

CODES = torch.zeros(8, 2, dtype=torch.int64)
BAGS = torch.arange(17)
FLAT = {"codes": CODES.flatten(), "bags": BAGS}


def wrong_code(code: int, *position: int) -> torch.Tensor:
    codes = CODES.clone()
    codes[position] = code
    return codes


GATED_EMBEDDING_CONCAT: list[tuple[dict[str, Any], str]] = [
    ({"kind": 7}, "kind must be an index from 0 to 4, got 7"),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
    ({"tau": 0.0}, "tau must be positive, got 0"),
    (
        {"weight": WIDE.int()},
        "weight must be float64, float32, float16 or bfloat16, got int32",
    ),
    ({"weight": WIDE[0]}, "weight must have 2 dimensions, got shape [2]"),
    ({"offsets": []}, "offsets must hold one row of weight per field, got none"),
    ({"offsets": [1, 2]}, "offsets must begin with 0, got 1"),
    ({"offsets": [0, -2]}, "offsets[1] must be at least 0, the one before, got -2"),
    ({"offsets": [0, 6]}, "offsets[1] must be at most 5, the rows of weight, got 6"),
    ({"codes": CODES.short()}, "codes must be int64 or int32, got int16"),
    ({"codes": CODES[0]}, "codes must have shape [B, 2], a column per offset, got [2]"),
    ({"codes": CODES[:, :1]}, "codes must have shape [B, 2], a column per offset, got [8, 1]"),
    ({"bags": BAGS}, "codes must have 1 dimension beside bags, got shape [8, 2]"),
    ({**FLAT, "bags": BAGS.int()}, "bags must be int64 like codes, got int32"),
    ({**FLAT, "bags": BAGS[1:]}, "bags must have shape [B · 2 + 1], got [16]"),
    ({**FLAT, "bags": BAGS[:0]}, "bags must have shape [B · 2 + 1], got [0]"),
    ({**FLAT, "bags": BAGS + 1}, "bags must begin with 0, got 1"),
    (
        {**FLAT, "bags": torch.tensor([0, 3, 2, *range(3, 17)])},
        "bags must not decrease, got 2 after 3 at position 2",
    ),
    ({**FLAT, "codes": FLAT["codes"][1:]}, "bags must end with 15, the number of codes, got 16"),
    ({"x": torch.ones(2).half()}, "x must be float32 for float32 embeddings, got float16"),
    ({"x": torch.ones(3)}, "x must have shape [2], one element per field, got [3]"),
    ({"epsilon": torch.tensor(0.1).double()}, "epsilon must be float32 like x, got float64"),
    ({"epsilon": torch.ones(1)}, "epsilon must have shape [], got [1]"),
    ({"scale": torch.ones(2).double()}, "scale must be float32 like x, got float64"),
    ({"scale": torch.ones(2, 1)}, "scale must have shape [2] like x, got [2, 1]"),
    ({"ungated": torch.ones(2).byte()}, "ungated must be bool, got uint8"),
    ({"ungated": torch.ones(1).bool()}, "ungated must have shape [2] like x, got [1]"),
    ({"epsilon": torch.tensor(0.0)}, "epsilon must be positive and finite, got 0"),
    ({"x": torch.tensor([0.0, float("nan")])}, "x must not be NaN, got nan at position 1"),
    *(
        (
            {"codes": wrong_code(code, 5, i).to(dtype)},
            f"codes must be at least 0 and below {2 + i}, the rows of field {i}, "
            f"got {code} at position [5, {i}]",
        )
        for code, i, dtype in (
            (-1, 0, torch.int64),
            (3, 1, torch.int64),
            (2**40, 0, torch.int64),
            (2, 0, torch.int32),
        )
    ),
    (
        {**FLAT, "codes": wrong_code(3, 5, 1).flatten()},
        "codes must be at least 0 and below 3, the rows of field 1, got 3 at position 11",
    ),
]

ONE = torch.tensor(1.0)
PROXIMAL_SGD: list[tuple[dict[str, Any], str]] = [
    ({"params": []}, "params must hold at least one tensor, got none"),
    ({"grads": [torch.ones(3)]}, "grads must hold 2 tensors like params, got 1"),
    ({"momentum_buffers": []}, "momentum_buffers must hold 2 tensors like params, got 0"),
    (
        {"params": [torch.ones(3).half(), torch.ones(2)]},
        "params[0] must be float32 or float64, got float16",
    ),
    (
        {"params": [torch.ones(3), torch.ones(2).double()]},
        "params[1] must be float32 like params[0], got float64",
    ),
    (
        {"grads": [torch.ones(3), torch.ones(2).half()]},
        "grads[1] must be float32 like params[1], got float16",
    ),
    (
        {"grads": [torch.ones(3), torch.ones(2, 1)]},
        "grads[1] must have shape [2] like params[1], got [2, 1]",
    ),
    (
        {"momentum_buffers": [torch.ones(3), torch.ones(4)]},
        "momentum_buffers[1] must have shape [2] like params[1], got [4]",
    ),
    (
        {"params": [ONE.expand(3), torch.ones(2)]},
        "params[0] must be contiguous, got strides [0]",
    ),
    (
        {"momentum_buffers": [torch.ones(6)[::2], torch.ones(2)]},
        "momentum_buffers[0] must be contiguous, got strides [2]",
    ),
    ({"lr": ONE.double()}, "lr must be float32 like params[0], got float64"),
    ({"lr": torch.ones(1)}, "lr must have shape [], got [1]"),
    ({"lam": ONE.double()}, "lam must be float32 like params[0], got float64"),
    ({"lam": torch.ones(1)}, "lam must have shape [], got [1]"),
    ({"budget": ONE}, "budget must be int64, got float32"),
    ({"budget": torch.tensor([1])}, "budget must have shape [], got [1]"),
    ({"lr": torch.tensor(-0.5)}, "lr must be at least 0 and finite, got -0.5"),
    ({"lr": torch.tensor(float("nan"))}, "lr must be at least 0 and finite, got nan"),
    ({"lr": torch.tensor(float("inf"))}, "lr must be at least 0 and finite, got inf"),
    ({"lam": torch.tensor(-1.0)}, "lam must be at least 0, got -1"),
    ({"lam": torch.tensor(float("nan"))}, "lam must be at least 0, got nan"),
    ({"budget": torch.tensor(-1)}, "budget must be at least 0, got -1"),
]


TABLE, FLAT = torch.ones(3, 2), torch.zeros(4)
ROW_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"weights": []}, "weights must hold at least one tensor, got none"),
    ({"grads": [TABLE]}, "grads must hold 2 tensors like weights, got 1"),
    (
        {"weights": [TABLE.int(), FLAT]},
        "weights[0] must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        {"weights": [TABLE, FLAT.half()]},
        "weights[1] must be float32 like weights[0], got float16",
    ),
    ({"grads": [TABLE.half(), FLAT]}, "grads[0] must be float32 like weights[0], got float16"),
    (
        {"rows": [torch.tensor([0])] * 3},
        "rows must hold at most 2 tensors like weights, got 3",
    ),
    (
        {"rows": [torch.tensor([0, 1])]},
        "grads[0] must have shape [2, 2], a row for each of rows[0], got [3, 2]",
    ),
    ({"rows": [torch.ones(3)]}, "rows[0] must be int64 or int32, got float32"),
    ({"rows": [torch.zeros(3, 1).long()]}, "rows[0] must have 1 dimension, got shape [3, 1]"),
    (
        {"rows": [torch.tensor([0, 1, 2]), torch.tensor([0])]},
        "weights[1] must have 2 dimensions beside rows, got shape [4]",
    ),
    (
        {"grads": [TABLE, torch.zeros(5)]},
        "grads[1] must have shape [4] like weights[1], got [5]",
    ),
    ({"grads": [TABLE, torch.zeros(8)[::2]]}, "grads[1] must be contiguous, got strides [2]"),
    (
        {"weights": [torch.ones(2, 3).t(), FLAT]},
        "weights[0] must be contiguous, got strides [1, 3]",
    ),
    ({"weight_decay": 0.5}, "weight_decay must be 0 beside rows, got 0.5"),
    ({"lr": torch.tensor(0.5).double()}, "lr must be float32 for float32 weights, got float64"),
    ({"lr": torch.ones(1)}, "lr must have shape [], got [1]"),
    ({"lr": torch.tensor(-0.5)}, "lr must be at least 0 and finite, got -0.5"),
    ({"lr": torch.tensor(float("nan"))}, "lr must be at least 0 and finite, got nan"),
]
ROW_STATES: list[tuple[str, dict[str, Any], str]] = [
    ("rows_adagrad_", {"sums": [TABLE]}, "sums must hold 2 tensors like weights, got 1"),
    (
        "rows_adagrad_",
        {"sums": [TABLE.double(), FLAT]},
        "sums[0] must be float32 for float32 weights, got float64",
    ),
    (
        "rows_adagrad_",
        {"sums": [torch.ones(3, 3), FLAT]},
        "sums[0] must have shape [3, 2] like weights[0], got [3, 3]",
    ),
    (
        "rows_adagrad_",
        {"sums": [torch.ones(6, 2)[::2], torch.ones(4)]},
        "sums[0] must be contiguous, got strides [4, 1]",
    ),
    (
        "rows_adagrad_",
        {"steps": [torch.tensor(1), torch.tensor(1.0)]},
        "steps[0] must be float32 or float64, got int64",
    ),
    (
        "rows_adagrad_",
        {"steps": [torch.ones(1), torch.tensor(1.0)]},
        "steps[0] must have shape [], got [1]",
    ),
    ("rows_adam_", {"exp_avgs": []}, "exp_avgs must hold 2 tensors like weights, got 0"),
    (
        "rows_adam_",
        {"exp_avg_sqs": [torch.ones(3, 1), FLAT]},
        "exp_avg_sqs[0] must have shape [3, 2] like weights[0], got [3, 1]",
    ),
    (
        "rows_sgd_",
        {"momentum_buffers": [TABLE, FLAT]},
        "momentum_buffers must hold none without momentum, got 2",
    ),
    (
        "rows_sgd_",
        {"momentum": 0.5, "momentum_buffers": [TABLE.clone(), FLAT.clone()]},
        "momentum must be 0 beside rows, got 0.5",
    ),
    (
        "rows_sgd_",
        {"momentum": 0.5},
        "momentum_buffers must hold 2 tensors like weights, got 0",
    ),
]


THREE = torch.ones(3)
REMOVAL_COSTS: list[tuple[dict[str, Any], str]] = [
    ({"x": THREE.half()}, "x must be float32 or float64, got float16"),
    ({"x": torch.ones(3, 1)}, "x must have 1 dimension, got shape [3, 1]"),
    ({"x": torch.tensor([1.0, float("nan"), 1.0])}, "x must not be NaN, got nan at position 1"),
    ({"epsilon": ONE.double()}, "epsilon must be float32 like x, got float64"),
    ({"epsilon": ONE - 1}, "epsilon must be positive and finite, got 0"),
    ({"scale": torch.ones(2)}, "scale must have shape [3] like x, got [2]"),
    ({"ungated": THREE}, "ungated must be bool, got float32"),
    ({"known": torch.ones(8, 3).double()}, "known must be float32 like x, got float64"),
    (
        {"known": torch.ones(8, 2)},
        "known must have shape [8, 3], one column per unit, got [8, 2]",
    ),
    ({"known": torch.ones(3, 8).t()}, "known must be contiguous, got strides [1, 8]"),
    (
        {"moments": torch.ones(2, 3)},
        "moments must have shape [3, 3], one column per unit, got [2, 3]",
    ),
    ({"moments": torch.ones(3, 3).double()}, "moments must be float32 like x, got float64"),
    ({"field_of_unit": THREE}, "field_of_unit must be int64, got float32"),
    (
        {"field_of_unit": torch.tensor([[0, 1, 2]])},
        "field_of_unit must have shape [3], got [1, 3]",
    ),
    (
        {"field_of_unit": torch.tensor([0, 3, 1])},
        "field_of_unit must name one of the 3 fields, got 3 at position 1",
    ),
    (
        {"field_of_unit": torch.tensor([0, 1, -1])},
        "field_of_unit must name one of the 3 fields, got -1 at position 2",
    ),
    ({"horizon": 0.5}, "horizon must be at least 1, got 0.5"),
    ({"horizon": float("nan")}, "horizon must be at least 1, got nan"),
    ({"loss_scale": 0.0}, "loss_scale must be positive and finite, got 0"),
    ({"loss_scale": float("inf")}, "loss_scale must be positive and finite, got inf"),
    ({"per_row": -1.0}, "per_row must be positive and finite, got -1"),
    ({"alpha": -1.0}, "alpha must be at least 0, got -1"),
    ({"tau": 0.0}, "tau must be positive, got 0"),
]


def wrong_row_step(step: RowStep, wrong: dict[str, Any]) -> RowStep:
    """A step with some of its arguments replaced, what changes by copies."""
    lists = {name: value for name, value in wrong.items() if name in step.lists}
    options = {name: value for name, value in wrong.items() if name in step.options}
    changed = replace(step.with_lists(**lists), options={**step.options, **options})
    return replace(changed, lr=wrong.get("lr", step.lr))


def type_of(message: str) -> type[Exception]:
    """A fault of dtype ends with the name of one."""
    last = getattr(torch, message.rpartition(" ")[2], None)
    return TypeError if isinstance(last, torch.dtype) else ValueError


def ids(cases: list[tuple[dict[str, Any], str]]) -> list[str]:
    return [message for _, message in cases]
