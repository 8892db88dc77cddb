"""gpusched: the scheduler of a shared GPU server.

Importing the package is cheap and works on Python 3.9+: training scripts import `gpusched.checkpoint`.
The daemon and the command line need Python 3.11.
"""

__version__ = "0.1.0"
