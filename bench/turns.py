"""The command line of programs whose contestants take turns in one process."""

from __future__ import annotations

import argparse

import torch


def seconds_of_each(description: str | None, default: float) -> float:
    """How long each case takes; PyTorch has the threads that were asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return float(options.seconds)
