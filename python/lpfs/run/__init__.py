"""The directory that a run leaves: written whole, read back, scored with."""

from lpfs.run.directory import (
    Cut,
    Died,
    FieldCost,
    History,
    Illustrate,
    Summary,
    load_encoders,
    load_history,
    load_pretrained,
    load_summary,
    save,
    summarise,
)
from lpfs.run.replacing import Replacement, replaced_by
from lpfs.run.scoring import Model, load_model

__all__ = [
    "Cut",
    "Died",
    "FieldCost",
    "History",
    "Illustrate",
    "Model",
    "Replacement",
    "Summary",
    "load_encoders",
    "load_history",
    "load_model",
    "load_pretrained",
    "load_summary",
    "replaced_by",
    "save",
    "summarise",
]
