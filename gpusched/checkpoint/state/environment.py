"""What a checkpoint was made with, and what of that has changed at a resume.

Another thread count, device or torch version rounds differently: the run continues correctly, but no longer bit for
bit. Must not import torch or numpy where the script has not.
"""

import os
import sys
from typing import Any, Dict, List

_MATTERS = {
    "torch": "torch",
    "device": "device",
    "threads": "torch's thread count",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "cpu": "the processor's capability",
    "deterministic": "deterministic algorithms",
}


def describe(modules: Dict[str, Any]) -> Dict[str, Any]:
    """Versions and settings that decide how numbers round, as plain values for the manifest."""
    system = os.uname()
    about: Dict[str, Any] = {"python": "%d.%d.%d" % sys.version_info[:3], "machine": system[4], "host": system[1]}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        about["numpy"] = str(numpy.__version__)
    if torch is not None:
        about["torch"] = str(torch.__version__)
        about["threads"] = torch.get_num_threads()
        about["deterministic"] = torch.are_deterministic_algorithms_enabled()
        about["device"] = _device(torch, modules)
        if about["device"] == "cpu":
            about["cpu"] = torch.backends.cpu.get_cpu_capability()
        else:
            about["cuda"], about["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return about


def _device(torch: Any, modules: Dict[str, Any]) -> str:
    """The kind of device that the first parameter is on: "cpu" or the GPU's model name."""
    for module in modules.values():
        for parameter in module.parameters():
            if parameter.device.type == "cuda":
                return str(torch.cuda.get_device_name(parameter.device))
            return str(parameter.device.type)
    return "cpu"


def changes(saved: Dict[str, Any], now: Dict[str, Any]) -> List[str]:
    """What differs in a way that can change bits, as short phrases."""
    return [
        "%s was %s and is %s" % (label, saved[key], now.get(key))
        for key, label in _MATTERS.items()
        if key in saved and saved[key] != now.get(key)
    ]
