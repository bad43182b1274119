"""Keeps what native libraries print off the terminal."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def native_stderr_aside() -> Iterator[None]:
    """Sets aside what is written to file descriptor 2 inside the block, where C++ code writes past `sys.stderr`.

    It goes to this module's logger at debug level. When the block raises it is printed after all, because then it
    may be the explanation. The descriptor belongs to the whole process, so keep the block short.
    """
    try:
        saved = os.dup(2)
    except OSError:  # no standard error to keep clean
        yield
        return
    with tempfile.TemporaryFile() as aside:
        sys.stderr.flush()
        os.dup2(aside.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            aside.seek(0)
            text = aside.read()
            if failed:
                os.write(2, text)
            elif text:
                logger.debug("%s", text.decode(errors="replace").rstrip())
