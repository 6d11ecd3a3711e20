"""The directory that a run leaves: written whole, read back, scored with."""

from lpfs.run.directory import (
    Cut,
    Died,
    FieldCost,
    History,
    Illustrate,
    Replacement,
    Summary,
    Values,
    load_encoders,
    load_history,
    load_pretrained,
    load_summary,
    save,
    summarise,
)
from lpfs.run.scoring import Model, load_model
from lpfs.run.version import Version, load_version, present

__all__ = [
    "Cut",
    "Died",
    "FieldCost",
    "History",
    "Illustrate",
    "Model",
    "Replacement",
    "Summary",
    "Values",
    "Version",
    "load_encoders",
    "load_history",
    "load_model",
    "load_pretrained",
    "load_summary",
    "load_version",
    "present",
    "save",
    "summarise",
]
