"""Networks with gates between embeddings and first layer."""

from lpfs.models.crossed_dlrm import CrossedDLRM
from lpfs.models.dcn import DCNv2
from lpfs.models.deep_fm import DeepFM
from lpfs.models.dlrm import DLRM
from lpfs.models.industrial import Industrial
from lpfs.models.wide_deep import WideDeep

__all__ = ["DLRM", "CrossedDLRM", "DCNv2", "DeepFM", "Industrial", "WideDeep"]
