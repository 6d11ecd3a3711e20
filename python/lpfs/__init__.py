"""Feature selection for click-through-rate models: LPFS and LPFS++ gates, from training to pruning."""

__version__ = "0.1.0"
