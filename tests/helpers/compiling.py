"""Waits for programs that are made in the background."""

import threading


def finish(programs):
    """Wait until nothing is made any more; however busy the machine is, for the thread gives way to everybody."""
    for thread in threading.enumerate():
        if thread.name == "twig-compiling":
            thread.join(300)
    assert not programs.report()["coming"]
