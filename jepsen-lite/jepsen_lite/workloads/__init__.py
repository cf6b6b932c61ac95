"""What clients do in a run, and how what came of it is judged."""

from jepsen_lite.workloads.table import ABOUT, make
from jepsen_lite.workloads.workload import Workload

__all__ = ["ABOUT", "Workload", "make"]
