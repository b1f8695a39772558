"""A server that has imported everything and forks a process for each command it is asked to run.

What it runs is the real command line (``python -m monai.bundle run ...``) in a process of its own
that can be killed, without the seconds that importing MONAI takes. It speaks JSON, a line each way.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import pkgutil
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate")


def import_everything() -> None:
    """Import what the bundles will need; MONAI's locator imports all of MONAI."""
    from monai.bundle.config_item import ComponentLocator

    ComponentLocator().get_component_module_name("Compose")
    # torch's optimizers import the second
    for name in ("torch.utils.tensorboard", "torch._dynamo", "medpair"):
        importlib.import_module(name)
    package = importlib.import_module("medpair")
    for module in pkgutil.walk_packages(package.__path__, "medpair."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    inspect.stack()  # Fire asks for it: the first time takes seconds


def watch(folder: str, act: Callable[[int], None]) -> list[int]:
    """Call ``act`` with a number before each change to a file in ``folder``; return the counter."""
    count, numbers = [0], itertools.count(1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            changes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & WRITES
        elif event in CHANGES:
            path, changes = args[0], True
        else:
            return
        if changes and isinstance(path, (str, Path)) and str(path).startswith(folder):
            # threads write too: each change has a number of its own
            number = next(numbers)
            count[0] = max(count[0], number)
            act(number)

    sys.addaudithook(hook)
    return count


def child(task: dict[str, Any]) -> int:
    """Run one command in this process, which the caller ends."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    # a shell's background jobs ignore Ctrl-C, and so would what they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if task.get("file_size") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_size"], task["file_size"]))
    if task.get("user") is not None:
        os.setgroups([])
        os.setgid(task["user"])
        os.setuid(task["user"])
    number, moment = task.get("signal_at", (0, 0))

    def act(at: int) -> None:
        if at == moment:
            os.kill(os.getpid(), number)

    count = watch(task["folder"], act)
    code = 0
    try:
        sys.argv = ["-m", *task["words"]]
        if task["module"] == "medpair.cli":
            from tests.hardness.in_process import run_bundles_here

            run_bundles_here()
        runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        # Python ends itself by the signal after Ctrl-C; shells call that 130
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # what an interpreter does first when it ends
    if task.get("count"):
        Path(task["count"]).write_text(str(count[0]))
    return code


def start(task: dict[str, Any]) -> int:
    """Fork a process for a task; return its id."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"expected to fork with one thread, found {threads}")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(task)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a process (negative: the signal), None if it runs on."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def main() -> None:
    """Answer requests until the input ends."""
    import_everything()
    out = os.fdopen(os.dup(1), "w")
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = start(request["start"]) if "start" in request else wait(*request["wait"])
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
