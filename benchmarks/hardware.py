"""What a benchmark ran on, for its record."""

import os
import platform
from pathlib import Path
from typing import Any


def hardware(**threads: int) -> dict[str, Any]:
    """CPU, cores, load when called, and `threads` under the name that the benchmark gives them."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        **threads,
        "load_before": [round(load, 1) for load in os.getloadavg()],
    }
