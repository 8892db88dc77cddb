"""What a run's state is made of: models, optimizers, schedulers, metrics, generators, and how each is taken and put back.

Knows nothing about files, requests or loops.
"""
