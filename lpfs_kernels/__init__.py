"""The operators of `torch.ops.lpfs`: importing this package registers them."""

from .gated_concat import gated_concat
from .gated_cross import every_pair, gated_cross_concat
from .gated_cross_linear import gated_cross_linear
from .gated_embedding import gated_embedding_concat
from .gated_linear import gated_linear
from .launch import check_values
from .proximal_sgd import proximal_sgd_
from .reference import KINDS
from .removal_costs import removal_costs_
from .removal_pull import removal_pull_
from .row_steps import rows_adagrad_, rows_adam_, rows_sgd_

__all__ = [
    "KINDS",
    "check_values",
    "every_pair",
    "gated_concat",
    "gated_cross_concat",
    "gated_cross_linear",
    "gated_embedding_concat",
    "gated_linear",
    "proximal_sgd_",
    "removal_costs_",
    "removal_pull_",
    "rows_adagrad_",
    "rows_adam_",
    "rows_sgd_",
]
