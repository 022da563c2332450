"""Calls at the same moment, each in a thread of its own."""

from concurrent.futures import ThreadPoolExecutor

__all__ = ["at_once"]


def at_once(*calls, seconds=60):
    """What each of the calls returned, in their order; the first error that one raised is raised here.

    Whoever has not returned after so many seconds is an error, too.
    """
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.result(seconds) for future in futures]
