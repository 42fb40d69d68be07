"""What the numbers of a run depend on beside its recipe: the dtype of large products, the device, how many compute."""

from __future__ import annotations

import torch

from regard.attention.native import unavailable


def resolved_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of large products: what was asked for, or for "auto" bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        if device.type == "cuda":
            capable = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capable = _cpu_multiplies_bfloat16()
        return torch.bfloat16 if capable else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def numerics(dtype: torch.dtype, device: torch.device, processes: int = 1) -> dict[str, str]:
    """What the last bits of a run depend on; a checkpoint keeps it. processes: how many share an update."""
    on_cpu = device.type == "cpu"
    return {
        "precision": name_of(dtype),
        "device": device.type,
        "threads": str(torch.get_num_threads()) if on_cpu else "any",
        "instructions": torch.backends.cpu.get_cpu_capability() if on_cpu else "any",
        "native code": "any" if not on_cpu else "no" if unavailable() else "yes",
        "processes": str(processes),
        "torch": torch.__version__.split("+")[0],
    }


def name_of(dtype: torch.dtype) -> str:
    """`float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """In words, what differs between two `numerics`; the empty string when nothing does."""
    return "; ".join(f"{name} {value}, now {now[name]}" for name, value in before.items() if value != now[name])


def _cpu_multiplies_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False  # not Linux: float32 is right everywhere
    return "avx512_bf16" in flags.split() or "amx_bf16" in flags.split()
