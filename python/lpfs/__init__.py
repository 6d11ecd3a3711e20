"""Feature selection for click-through-rate models by LPFS and LPFS++ gates."""

__version__ = "0.1.0"
