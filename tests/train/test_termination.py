"""SIGTERM while a run lasts."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
from xdyna_train.termination import noted_termination


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


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_ends_with_the_second():
    with noted_termination() as come:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.5)
        child.terminate()
        child.join(1)
        assert child.is_alive()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        assert not come(), "the child's is not its parent's"
