"""The sections of an experiment's page: each makes what its rows allow of a panel, or None."""
