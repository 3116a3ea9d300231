"""The program that `ros2 run talent_ros talent_node` starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

OWN = ("talent", "deploy")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the node. Exit code 2 where ROS's Python has no talent-edge."""
    try:
        from talent_ros.node import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OWN:
            raise
        print(f"talent_node: error: this needs the package talent-edge in the Python that runs it, {sys.executable}; "
              "run: python3 -m pip install 'talent-edge[cpu]'", file=sys.stderr)
        return 2
    return run(args)
