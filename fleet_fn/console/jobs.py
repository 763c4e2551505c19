"""Changes of many devices, which take longer than a request may."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from fleet_fn.errors import UpstreamError
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.observability.log import logger

#: Devices whose problems are kept.
_MAX_PROBLEMS: Final = 20
#: Applications whose last job is kept.
_MAX_JOBS: Final = 1000


@dataclass(slots=True)
class Job:
    """A change of many devices; its thread alone writes to it."""

    title: str
    user: str
    total: int
    began: datetime
    done: int = 0
    #: Devices that could not be changed, and why.
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    #: What came of it, in words; empty while it goes on.
    result: str = ""
    #: It did not do what was asked for.
    has_failed: bool = False
    ended: datetime | None = None

    def add_problem(self, device: str, problem: str) -> None:
        """Note that a device could not be changed."""
        self.problem_count += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(f"{device}: {problem}")


class Jobs:
    """Runs one job per application at a time. Safe to use from several threads."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def last(self, application: str) -> Job | None:
        """Return the last job of an application, which may still go on; None without any."""
        with self._lock:
            return self._jobs.get(application)

    def start(self, application: str, title: str, user: str, total: int, run: Callable[[Job], str]) -> Job:
        """Start a job in a thread of its own.

        Args:
            application: the application's name.
            title: what it does, for people.
            user: who asked for it, for people.
            total: number of devices.
            run: does it, counts in the job, and returns what came of it.

        Raises:
            RefusedError: another job of the application goes on.

        """
        job = Job(title, user, total, self._now())
        with self._lock:
            known = self._jobs.get(application)
            if known and known.ended is None:
                raise RefusedError(f"{known.title} (by {known.user}) still goes on; wait for its end")
            self._jobs[application] = job
            self._jobs.move_to_end(application)
            while len(self._jobs) > _MAX_JOBS:
                self._jobs.popitem(last=False)
        threading.Thread(target=self._run, args=(job, run), name="job", daemon=True).start()
        return job

    def _run(self, job: Job, run: Callable[[Job], str]) -> None:
        try:
            job.result = run(job)
        except UpstreamError as error:
            job.result, job.has_failed = error.reason, True
        except Exception:  # noqa: BLE001 - the one boundary of this thread
            logger.exception("unexpected error")
            job.result, job.has_failed = "internal error; the console's log has it", True
        job.ended = self._now()
