"""Experiments: methods × budgets × models × data × seeds, from one file to tables.

`read` a TOML file, `run` it into a directory:

- `config` says what can be asked for, `cells` what it falls into;
- `work` runs one cell, on what `shared` makes once for many of them;
- `harness` runs them all, `results` writes the tables, `summary` prints them.
"""

from lpfs.experiment.config import ConfigError, Experiment, read
from lpfs.experiment.harness import Done, run

__all__ = ["ConfigError", "Done", "Experiment", "read", "run"]
