"""Runs of several processes: agreeing on the step to stop at, one checkpoint from all ranks, another number of ranks."""
