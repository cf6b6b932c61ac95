"""Where a run happens: real processes, the simulator, containers."""

from jepsen_lite.targets.target import ABOUT, Cluster, NodeAt, TargetError

__all__ = ["ABOUT", "Cluster", "NodeAt", "TargetError"]
