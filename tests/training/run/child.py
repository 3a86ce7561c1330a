"""A run in a process of its own: ``python -m tests.training.run.child ARGUMENTS``.

It says on its standard output what it is at, and can be slowed down so that a signal
finds it there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

# A shell's background jobs ignore SIGINT, and so do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


def main(folder, steps, slow, log, every, pace):
    from haiku_mqa.training.run.events import Evaluated, Saved, Started, Stepped
    from haiku_mqa.training.run.train import train
    from tests.training.run.runs import CORPUS, longer

    if slow:  # saves take time, so that kills fall into them
        fsync, rename = os.fsync, os.rename

        def slow_fsync(descriptor):
            time.sleep(slow)
            fsync(descriptor)

        def slow_rename(*paths):
            time.sleep(slow)
            rename(*paths)
            time.sleep(slow)

        os.fsync, os.rename = slow_fsync, slow_rename

    record = open(log, "a") if log else None  # noqa: SIM115

    def on_event(event):
        if isinstance(event, Started):
            print(f"from {event.first_step}", flush=True)
        if isinstance(event, Stepped):
            print(f"step {event.step}", flush=True)
            if record:
                record.write(f"{event.step} {event.metrics.loss.hex()}\n")
                record.flush()
            time.sleep(pace)
        if isinstance(event, Evaluated):
            print(f"evaluated {event.step}", flush=True)
        if isinstance(event, Saved):
            print(f"saved {event.step}", flush=True)

    config = longer(steps, eval_every=every, checkpoint_every=every)
    print("ready", flush=True)
    result = train(config, CORPUS, out=folder, on_event=on_event)
    print(f"stopped {result.stopped}", flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
