"""The directory that a run leaves: written whole, read back, scored with."""

from lpfs.run.directory import (
    Cut,
    Died,
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

__all__ = [
    "Cut",
    "Died",
    "History",
    "Illustrate",
    "Summary",
    "load_encoders",
    "load_history",
    "load_model",
    "load_pretrained",
    "load_summary",
    "save",
    "summarise",
]
