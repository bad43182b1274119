"""Preparing on many cores and many machines, with Ray Data.

Without RAY_ADDRESS, or where it is empty or "local", Ray is started on this machine, reachable from it alone, and is
gone in the end. With it, the cluster there does the work, unchanged. Each worker is one process with its detectors
loaded once.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna_model.detectors.native_log import native_stderr_aside
from xdyna_model.errors import InputError

from xdyna_train.person_finder import PersonFinder
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.prepare_video import VideoJob, prepare_video
from xdyna_train.quality import QualityModel

# On Linux, Ray takes 127.0.0.1 for a mistake and listens on the address that the network knows the machine by.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
# More rows than these go to a worker in blocks: what Ray keeps in mind of a block costs more than a short video.
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class _Models:
    """How a worker gets what it works with."""

    options: PrepareOptions
    make_finder: Callable[[PrepareOptions], PersonFinder]
    make_quality: Callable[[PrepareOptions], QualityModel]


class _Worker:
    """One process, which does one video after another."""

    def __init__(self, models: _Models) -> None:
        self._options = models.options
        self._error = ""
        try:
            self._finder, self._quality = models.make_finder(models.options), models.make_quality(models.options)
        except InputError as error:
            self._error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """row: a VideoJob, as text. Returns the error that must end the run, empty where there is none."""
        if not self._error:
            job = VideoJob(row["video"], Path(row["path"]), Path(row["part"]))
            try:
                prepare_video(job, self._options, self._finder, self._quality)
            except InputError as error:
                self._error = str(error)
        return {"video": row["video"], "error": self._error}


def run_on_ray(
    jobs: Sequence[VideoJob],
    options: PrepareOptions,
    workers: int | None,
    make_finder: Callable[[PrepareOptions], PersonFinder],
    make_quality: Callable[[PrepareOptions], QualityModel],
) -> Iterator[str]:
    """Does the jobs, in any order; yields the name of each video that is done.

    workers: None for one on each core. Raises InputError where a worker did; Ray is shut down then too.
    """
    # Ray's own code trips over what Python and its own next version deprecate; none of it is this program's to change.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _ray(workers) as ray:
            count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            rows = [{"video": j.video, "path": str(j.path.absolute()), "part": str(j.part.absolute())} for j in jobs]
            done = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
                _Worker,
                fn_constructor_args=(_Models(options, make_finder, make_quality),),
                compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
                num_cpus=1,
            )
            for row in done.iter_rows():
                if row["error"]:
                    raise InputError(row["error"])
                yield row["video"]


@contextmanager
def _ray(workers: int | None) -> Iterator[Any]:
    """Ray, connected. It is quiet, sends nothing anywhere and opens no page."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Under `uv run` it would pack up the working directory and set up an environment anew for every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": "error"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            address = os.environ.get("RAY_ADDRESS") or "local"
            if address == "local":
                here = {"_node_ip_address": _LOOPBACK, "_temp_dir": folder, "include_dashboard": False}
                advice = "try again when the machine is less busy, or without Ray: --workers 0"
                _start(ray, "Ray did not start here", advice, address=address, num_cpus=workers, **here, **quiet)
            else:
                failure = f"RAY_ADDRESS {address}: Ray cannot be reached there"
                _start(ray, failure, "correct it, or unset it to work on this machine", address=address, **quiet)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, failure: str, advice: str, **options: Any) -> None:
    """Raises InputError: the failure, the first sentence of Ray's reason, and the advice."""
    try:
        with native_stderr_aside():
            ray.init(**options)
    except Exception as error:  # Ray has no class of its own for it
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
        raise InputError(f"{failure} ({reason}); {advice}") from error
