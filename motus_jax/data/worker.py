"""How a process that assembles batches lives and ends: `begin` is the first thing that it does."""

import concurrent.futures
import ctypes
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

import cv2

GRACE = 30.0
"""Seconds that a worker outlives a request to end: the run that it feeds may need batches until it has saved."""

TRIM_EVERY = 30.0
"""Seconds after which a worker gives free memory back to the system."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that reach all processes of a run at once, from a terminal or a batch system."""

T = TypeVar("T")


def shelter(start: Callable[[], T]) -> T:
    """Calls what starts workers, so that signals wait for them until `begin` has said what to do with them.

    A process inherits what the thread that starts it has blocked, and so does a thread; this one is ours, so the
    calling thread hears its signals meanwhile.
    """
    multiprocessing.resource_tracker.ensure_running()  # its start would end the blocking
    result: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            result.set_result(start())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="start", daemon=True).start()
    return result.result()


def begin(index: int, count: int) -> None:
    """Ties this worker to the process that started it.

    It ends with that process, also when that one is killed: an orphan would wait for ever and keep its memory. Signals
    that reach all processes of a run at once (Ctrl-C, a batch system's SIGTERM) are for the run to answer; those that
    came before this are heard now (`shelter`).

    Args:
      index: of this worker.
      count: of all workers.
    """
    del index, count
    cv2.setNumThreads(0)  # workers and their threads are the parallelism
    threading.Thread(target=_watch, name="watch", daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _end_later)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _watch() -> None:
    parent = multiprocessing.parent_process()
    trim = _trimmer()
    while parent is not None and parent.is_alive():
        parent.join(TRIM_EVERY)
        trim()
    if parent is not None:
        os._exit(1)  # the main thread may be waiting for a place in a queue that nobody empties


def _trimmer() -> Callable[[], object]:
    """What gives free memory back: glibc itself keeps the holes between blocks, which grow in number for tens of
    thousands of examples. (That it keeps them for a while is worth a third of the speed of decoding.)"""
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return lambda: None  # another C library, which has its own ways
    return lambda: trim(0)


def _end_later(*_: object) -> None:
    timer = threading.Timer(GRACE, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    timer.start()
