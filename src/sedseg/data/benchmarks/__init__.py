"""The field's benchmarks: a table of them, and their files brought into the folder format."""

from sedseg.data.benchmarks.prepare import Prepared, prepare, prepared_folder
from sedseg.data.benchmarks.table import BENCHMARKS, Benchmark, benchmark, datasets_root

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Prepared",
    "benchmark",
    "datasets_root",
    "prepare",
    "prepared_folder",
]
