"""The real worker behind other orders, other failures and other ends, for tests of the driver."""

from __future__ import annotations

import random
from collections import Counter

from raysweep.engine import events
from raysweep.engine.calls import Outcome
from raysweep.engine.dispatch import Slot
from raysweep.engine.executor import LocalBackend, LocalExecutor
from raysweep.engine.training_work import untold
from raysweep.engine.work import Worker


class Shuffled:
    """Takes several calls at once and ends them in a random order."""

    def __init__(self, folder, seed):
        self.about = {"executor": "shuffled", "workers": 3}
        self.slots = [Slot(depth=2)] * 3
        self.worker, self.calls, self.random = Worker(folder), [], random.Random(seed)
        self.most = 0

    def submit(self, index, call):
        self.calls.append(call)
        self.most = max(self.most, len(self.calls))

    def collect(self):
        return [self.worker.attempt(self.calls.pop(self.random.randrange(len(self.calls))))]

    def close(self):
        self.worker.unload()


class Failing(LocalExecutor):
    """Fails the calls whose names begin so, `times` times each."""

    def __init__(self, folder, *names, times=99, failure="raised"):
        super().__init__(Worker(folder))
        self.names, self.times, self.failure, self.seen = names, times, failure, Counter()

    def collect(self):
        call = self._calls[0]
        if call.name.startswith(self.names) and self.seen[call.name] < self.times:
            self.seen[call.name] += 1
            words = "RuntimeError: out of memory\nand more"
            return [Outcome(self._calls.popleft(), error=words, traceback="Traceback …", failure=self.failure)]
        return super().collect()


class Interrupted(LocalExecutor):
    """Ends like a user's Ctrl-C after some calls."""

    def __init__(self, folder, after):
        super().__init__(Worker(folder))
        self.after, self.closed = after, False

    def collect(self):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().collect()

    def close(self):
        super().close()
        self.closed = True


class On(LocalBackend):
    """A backend with the executor that `make` makes of the folder; `made` keeps them."""

    def __init__(self, make):
        self.make, self.made = make, []

    def open(self, folder, n_calls, tell=untold):
        self.made.append(self.make(folder))
        return self.made[-1]


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def commits(events_):
    return Counter(key for event in events_ if event["event"] == events.CHUNK_COMMITTED for key in event["keys"])
