"""Adapters of a few lines each for training frameworks. Each file is only imported by scripts that use its framework."""
