r"""Everything that docs/performance.md wants to know of a GPU, in one call.

    python benchmarks/gpu.py --output benchmarks/results

Measures the device's ceilings (bfloat16 matrix product, copying memory), then sed-base at 768x768:
plain beside fast, dense at 150 classes and with k = 8 and 20 kept of 150 and 847, in batches of 1
and 8; and what the kernels of one fast run were. Not yet run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_SETTINGS = (
    ("--classes", "20,150", "--top-k", "none", "--batch", "1"),
    ("--classes", "20,150,847,10000", "--top-k", "8", "--batch", "1"),
    ("--classes", "150", "--top-k", "none,8", "--batch", "8"),
)


def main() -> None:
    """Measure and write ``gpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = {"ceilings": ceilings(), "tables": []}
    for setting in _SETTINGS:
        command = [sys.executable, "-m", "sedseg", "benchmark", "--device", "cuda", "--json"]
        done = subprocess.run([*command, *setting], capture_output=True, text=True, check=False)
        found["tables"].append(json.loads(done.stdout) if done.returncode == 0 else done.stderr)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


def ceilings() -> dict[str, float | str]:
    """Operations and bytes a second."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = fastest(lambda: a @ b)
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copying = fastest(lambda: target.copy_(source))
    return {
        "device": torch.cuda.get_device_name(),
        "bfloat16 operations a second": 2 * 8192**3 / product,
        "bytes moved a second": 2 * source.numel() / copying,
    }


def fastest(work: Callable[[], object], runs: int = 20) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        before = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return min(times)


if __name__ == "__main__":
    main()
