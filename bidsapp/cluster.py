"""A Dask cluster as the crew: the same scans, processes and bits, on other machines."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Self

from distributed import Client, Future, WorkerPlugin, get_worker

from bidsapp.errors import UserError
from bidsapp.execution import POLL, Work, Worker, end_workers, log_here
from bidsapp.fingerprint import software
from bidsapp.worker import Answer

if TYPE_CHECKING:
    from distributed import Worker as DaskWorker

    from bidsapp.study import Scan

log = logging.getLogger(__name__)

RETRIES = 2  # after an error of Dask's own; that a lost worker's scan goes to another is its habit
IDLE_SECONDS = 600.0  # after which a process ends whose run was killed before it could end it


class DaskCrew:
    """Gives scans to the workers of a Dask cluster; each of their threads is one core.

    A scan is worked on in a process of its own beside the worker, as it would be on one machine
    (`execution.Worker`), so that it has the same environment and cannot harm the worker. The scan
    of a worker that is lost is given to another.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://10.0.0.1:8786``, or its scheduler file (.json).
    environment
        From `execution.worker_environment`.
    shared
        The output folder, which every machine must see under the same path.
    all_at_once
        Hand over every scan at the start, from which a cluster that grows with its work sees how
        much there is; else only as many as there are cores.

    Raises
    ------
    UserError
        On entry: no scheduler answers, or its workers run other versions.
    SystemExit
        With code 1, where the scheduler is lost on the way.
    """

    def __init__(
        self, address: str, environment: Mapping[str, str], shared: Path, all_at_once: bool = True
    ) -> None:
        self.address, self.all_at_once = address, all_at_once
        self.busy: dict[object, tuple[int, Scan, Future]] = {}
        self._name = f"brainage-{uuid.uuid4()}"
        self._beside = _Beside(dict(environment), shared, log.getEffectiveLevel())
        self._ended: SimpleQueue[Future] = SimpleQueue()

    def __enter__(self) -> Self:
        self._client = _connect(self.address)
        try:
            _check_versions(self._client, self.address)
            self._client.register_plugin(self._beside, name=self._name)
        except BaseException:
            self._client.close()
            raise
        log.info("Dask: %d cores now, %s", self.cores, self._client.dashboard_link)
        return self

    @property
    def cores(self) -> int:
        """Threads of all workers that are there now; at least 1."""
        return max(1, sum(self._client.nthreads().values()))

    @property
    def places(self) -> int:
        """How many scans the cluster is given at once."""
        return sys.maxsize if self.all_at_once else self.cores

    def start(self, work: Work, index: int, scan: Scan) -> None:
        """Hand a scan over to the scheduler."""
        future = self._client.submit(
            _work_there, self._name, work, scan, key=f"{self._name}-{scan.stem}", pure=False,
            retries=RETRIES,
        )  # fmt: skip
        self.busy[future.key] = index, scan, future
        future.add_done_callback(self._ended.put)

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each scan that has just ended, and its answer; wait a moment."""
        try:
            future = self._ended.get(timeout=POLL)
        except Empty:
            return
        index, scan, _ = self.busy[future.key]
        answer = self._answer(scan, future)
        del self.busy[future.key]  # and with the future, its result in the cluster
        yield index, answer

    def _answer(self, scan: Scan, future: Future) -> Answer:
        if future.cancelled():
            log.error(
                "The Dask scheduler %s was lost; what is finished is kept, and the same command "
                "goes on from there.", self.address
            )  # fmt: skip
            raise SystemExit(1)
        if error := future.exception():
            what = f"{type(error).__name__}: {error}"
            message = f"{scan.path}: the Dask cluster gave up on it: {what}"
            return Answer("failed", message, message, 0.0)
        answer, records = future.result()
        for record in records:
            log_here(record)
        return answer

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError):  # the scheduler is lost
            self._client.cancel([future for *_, future in self.busy.values()])
            self._client.unregister_worker_plugin(self._name)
        self._client.close()


def _connect(address: str) -> Client:
    where = {"scheduler_file" if address.endswith(".json") else "address": address}
    try:
        if "scheduler_file" in where:  # which Dask would wait for
            Path(address).open().close()
        return Client(**where, set_as_default=False)
    except (OSError, ValueError) as error:  # no such host, nobody there, no such file
        reason = str(error)
    # What is left of the client closes itself with a lock that is not reentrant: here, and not
    # wherever the garbage collector meets it, which may be where another client holds that lock.
    gc.collect()
    raise UserError(
        f"--dask-scheduler {address}: no Dask scheduler answers there ({reason}); start one "
        "with 'dask scheduler', and its workers with 'dask worker'."
    )


def _check_versions(client: Client, address: str) -> None:
    """Refuse workers whose software would give other numbers."""
    here = software()
    wrong = f"--dask-scheduler {address}: "
    try:
        others = client.run(software)
    except Exception as error:  # whatever keeps a worker from importing this app
        raise UserError(
            f"{wrong}its workers cannot run brainage ({error}); start them in the environment or "
            "container of this program."
        ) from error
    for worker, there in others.items():
        for name in here:
            if there.get(name) != here[name]:
                raise UserError(
                    f"{wrong}the worker {worker} has {name} {there.get(name)}, here it is "
                    f"{here[name]}; start it in the environment of this program."
                )


class _Beside(WorkerPlugin):
    """Processes beside a Dask worker, one for each scan that it works on at the same time."""

    def __init__(self, environment: dict[str, str], shared: Path, log_level: int) -> None:
        self.environment, self.shared, self.log_level = environment, shared, log_level

    def setup(self, worker: DaskWorker) -> None:
        """Begin on a Dask worker; processes are started when there is work for them."""
        self.lock = threading.Lock()  # starting a process changes the environment for a moment
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()
        # A worker is a daemon of its nanny, and multiprocessing lets daemons have no children.
        multiprocessing.current_process().daemon = False

    def teardown(self, worker: DaskWorker) -> None:
        """End the processes, when the run or the worker ends."""
        end_workers(list(self.idle), list(self.busy))

    def attempt(self, work: Work, scan: Scan) -> tuple[Answer, list[logging.LogRecord]]:
        """Do the work on a scan; with what was logged meanwhile."""
        if not self.shared.is_dir():
            raise FileNotFoundError(f"{socket.gethostname()} does not see {self.shared}")
        with self.lock:
            self.idle = [process for process in self.idle if process.process.is_alive()]
            process = self.idle.pop() if self.idle else self._new()
            self.busy.add(process)
        process.give(work, 0, scan)
        records: list[logging.LogRecord] = []
        while not isinstance(message := process.message(), Answer):
            records.append(message)
        with self.lock:
            self.busy.remove(process)
            self.idle.append(process)
        return message, records

    def _new(self) -> Worker:
        return Worker(self.environment, self.log_level, IDLE_SECONDS)


def _work_there(name: str, work: Work, scan: Scan) -> tuple[Answer, list[logging.LogRecord]]:
    """What Dask runs, in a thread of a worker."""
    beside = get_worker().plugins[name]
    assert isinstance(beside, _Beside)
    return beside.attempt(work, scan)
