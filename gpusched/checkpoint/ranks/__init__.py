"""Runs of several processes: agreeing on the step to stop at, one checkpoint from all, another number of ranks."""
