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
    load_model,
    load_pretrained,
    load_summary,
    save,
    summarise,
)
from lpfs.run.replacing import Replacement, replaced_by

__all__ = [
    "Cut",
    "Died",
    "FieldCost",
    "History",
    "Illustrate",
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
