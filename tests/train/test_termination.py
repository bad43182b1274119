"""SIGTERM while a run lasts."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from xdyna_train.termination import noted_termination, pass_over_first_termination


def test_it_is_noted_and_ends_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with noted_termination() as come:
        assert not come()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert come()
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_it_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def block() -> None:
        with noted_termination() as come:
            seen.append((signal.getsignal(signal.SIGTERM), come()))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def _sleep() -> None:
    pass_over_first_termination()
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_who_works_for_another_ends_with_the_second():
    child = multiprocessing.get_context("fork").Process(target=_sleep)
    child.start()
    time.sleep(0.5)
    child.terminate()
    child.join(1)
    assert child.is_alive()
    child.terminate()
    child.join(10)
    assert child.exitcode == -signal.SIGTERM


LOOP = """
import sys
import torch
from torch.utils.data import DataLoader
from xdyna_train.termination import noted_termination, pass_over_first_termination

if __name__ == "__main__":
    with noted_termination() as come:
        loader = DataLoader(range(10**9), num_workers=1, worker_init_fn=pass_over_first_termination)
        for _ in loader:
            print("going", flush=True)
            if come():
                break
    sys.exit(7)
"""


def test_a_loader_lives_through_one_that_goes_to_the_group():
    """As `torchrun` and `timeout` send it."""
    loop = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert loop.stdout is not None
    assert loop.stdout.readline() == "going\n"
    os.killpg(loop.pid, signal.SIGTERM)
    loop.communicate(timeout=60)
    assert loop.returncode == 7
