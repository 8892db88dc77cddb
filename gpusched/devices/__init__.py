"""The devices of the machine: the NVML adapter, the simulated one, and who holds what on them."""
