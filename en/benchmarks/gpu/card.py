"""The graphics card, as its driver describes it."""

import subprocess

FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


def card() -> str:
    """Name, driver, memory, clocks, power and temperature now; nothing where nvidia-smi is missing."""
    try:
        line = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
    names = ["", "driver", "memory", "SM clock", "at most", "memory clock", "power", "temperature"]
    return ", ".join(f"{name} {value}".strip() for name, value in zip(names, values, strict=False))
