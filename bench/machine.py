"""The facts a figure is worth nothing without: device, driver, clocks, versions, commit."""

import contextlib
import datetime
import importlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "triton", "xdyna-kernels", "numpy")
# What nvidia-smi is asked where nvidia-ml-py is not installed, under the names that `_nvml` gives.
_SMI = {
    "gpu": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "sm_mhz_max": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "watts_limit": "power.limit",
    "throttle_reasons": "clocks_throttle_reasons.active",
}


def facts(device: torch.device) -> dict:
    """What does not change during a run."""
    found: dict = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return found | {"capability": f"sm_{major}{minor}", "cuda": torch.version.cuda}
    return found | {"threads": torch.get_num_threads()}


def sample(device: torch.device) -> dict:
    """Clocks, temperature, power and throttle reasons right now; {"unknown": why} where nobody can be asked."""
    if device.type != "cuda":
        return {"load": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        return _nvml(uuid)
    except ImportError:
        return _smi(uuid)


def cpu_name() -> str:
    """The model's name and the number of cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The commit of this checkout, with a + if files that git knows are changed; None outside of git."""
    where = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvml(uuid: str) -> dict:
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "gpu": nvml.nvmlDeviceGetName(gpu),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "sm_mhz_max": nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "celsius": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            "watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "watts_limit": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
            "throttle_reasons": hex(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
        }
    except nvml.NVMLError as error:
        return {"unknown": f"nvidia-ml-py: {error}"}


def _smi(uuid: str) -> dict:
    query = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        return dict(zip(_SMI, (value.strip() for value in answer.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"unknown": f"nvidia-ml-py is not installed, and nvidia-smi: {error}"}
