"""Adapters of a few lines each for training frameworks; only scripts that use a framework import its file."""
