"""The neural baselines of sequential recommendation: one trainer, and one file for each network."""
