"""The folder of a run: its identity, its files, its checkpoints, and who may write it."""
