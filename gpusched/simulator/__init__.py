"""A second shell around the engine: virtual time, simulated attempts, the store in memory. No processes, no files.

It drives the same `Engine` through the same door as the daemon. No decision is made here.
"""
