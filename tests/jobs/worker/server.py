"""`python -m tests.jobs.worker.server HOME`: a supervisor in a process of its own, to be killed."""

import signal
import sys
import threading
from pathlib import Path

from luthier.jobs.worker.settings import WorkerSettings
from luthier.jobs.worker.supervisor import Supervisor

if __name__ == "__main__":
    home = Path(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Supervisor(home, WorkerSettings.model_validate_json((home / "settings.json").read_text())):
        stop.wait()
