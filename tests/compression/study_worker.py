"""A worker of a study whose work is to wait.

python study_worker.py STORAGE FOLDER STEPS SECONDS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dprp_tf.compression import study
from dprp_tf.compression.outcome import Candidate
from dprp_tf.compression.schedule import Step
from dprp_tf.compression.study import CompressionStudy, Result, Task


def main() -> None:
    """Do steps of shares 0.1, 0.2 and so on, the next that no worker has begun."""
    storage, folder, steps, seconds = sys.argv[1:]
    study._HEARTBEAT, study._GRACE = 1, 3
    kept = CompressionStudy(Path(folder), {"model": "a"}, storage=storage)

    def work(task: Task) -> Result:
        print(f"begun {task.candidate.share}", flush=True)
        time.sleep(float(seconds))
        return Result(task.candidate.share, 0.5, 0.5, {"by": folder})

    for _ in range(int(steps)):
        known = {one.candidate.share for one in kept.outcomes() if one.state != "failed"}
        share = next(s / 10 for s in range(1, 10) if s / 10 not in known)
        kept.run(Step("cut", Candidate("both", share)), work)


if __name__ == "__main__":
    main()
