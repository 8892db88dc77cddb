"""The one error of the simulator: bad input of a simulation, or a run that is no result. Exit code 1."""

from __future__ import annotations

from gpusched.model.errors import Refused


class SimulationError(Refused):
    """What was asked for cannot be simulated, or the run may not be called a result."""

    code = "simulation"
