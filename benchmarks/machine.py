"""What a figure was measured on."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, clocks and versions, ready for JSON."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            **_driver(device),
        }
    else:
        found["threads"] = torch.get_num_threads()
        found["oneDNN"] = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def folder_name(device: torch.device) -> str:
    """The device's name as a folder: small letters, digits and hyphens."""
    name = f"{'' if device.type == 'cuda' else 'cpu '}{device_name(device)}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """The commit that is checked out here, with "+" where the tree differs; "" outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("rev-parse", "--short", "HEAD")
        # Reports that this very run writes change nothing of what is measured.
        where = ("--", ":(top)", ":(top,exclude)benchmarks/results")
        return found and found + "+" * bool(git("status", "--porcelain", "-uno", *where))
    except OSError:
        return ""


def _driver(device: torch.device) -> dict[str, str]:
    fields = {
        "driver": "driver_version",
        "clock_now": "clocks.sm",
        "clock_limit": "clocks.max.sm",
        "memory_clock": "clocks.mem",
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.strip().splitlines()
    index = device.index or 0
    if done.returncode or index >= len(lines):
        return {}
    return dict(zip(fields, (value.strip() for value in lines[index].split(",")), strict=False))


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "absent"
    return str(triton.__version__)
