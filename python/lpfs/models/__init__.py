"""Networks with gates between embeddings and first layer."""

from lpfs.models.dlrm import DLRM

__all__ = ["DLRM"]
