"""Scalars for TensorBoard, which is imported only where someone asks for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpfs.lifecycle.training import Progress

POINTS = 500


class Scalars:
    """Writes loss and living fields of every stage while a run goes on, and its gates in the end.

    Use it as the callback of `lpfs.select`. The directory appears with the first scalar. Raises
    ValueError where TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ValueError("--tensorboard: not installed, expected pip install lpfs[tensorboard]")
        self.directory = directory
        self._open: Any = None

    @property
    def _writer(self) -> Any:
        if self._open is None:
            from torch.utils.tensorboard import SummaryWriter

            self._open = SummaryWriter(str(self.directory))
        return self._open

    def __call__(self, step: Progress) -> None:
        """Note where the run stands."""
        self._writer.add_scalar(f"{step.stage}/loss", step.loss, step.step)
        if step.alive is not None:
            self._writer.add_scalar(f"{step.stage}/alive", step.alive, step.step)

    def finish(self, history: Mapping[str, Sequence[float]]) -> None:
        """Write the other columns of `history.parquet`, at most 500 steps of them, and close."""
        every = -(-len(history["step"]) // POINTS)
        for name in set(history) - {"step", "loss", "alive"}:
            kind, _, field = name.partition(":")
            tag = f"{kind}/{field}" if field else f"select/{name}"
            for step, value in list(zip(history["step"], history[name], strict=True))[::every]:
                self._writer.add_scalar(tag, value, int(step))
        self._writer.close()
