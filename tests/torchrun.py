"""Several processes on this machine, joined by torchrun as users do it."""

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import ROOT

_PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
# On the CPU: processes on GPUs need one each, and a machine may have a single one.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _PATH, "CUDA_VISIBLE_DEVICES": ""}


def torchrun(processes: int, script: Path, *argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes and wait for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    return subprocess.run(
        [*command, str(script), *map(str, argv)],
        cwd=cwd,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1800,  # a deadlock ends here; no machine is so slow
    )
