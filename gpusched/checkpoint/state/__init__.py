"""What a run's state is made of (models, optimizers, metrics, generators…), and how it is taken and put back.

Knows nothing about files, requests or loops.
"""
