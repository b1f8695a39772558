"""Runs ``python -m monai.bundle run`` and ``medpair`` for shells, without their six seconds' start.

One process imports everything once, then forks a child for every command it is asked for. A shell
asks through the script that ``write_shims`` puts on its PATH under the names ``python`` and
``medpair``; arguments, folder, environment, output and exit code are the command's own. What is
asked for is made small by ``reduced``: a document's command is run word by word but for sizes.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHIM = """#!/bin/sh
exec {python} -SE {ask} "$0" "$@"
"""

ASK = """
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
words = [os.path.basename(sys.argv[1]), *sys.argv[2:]]
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(request).to_bytes(8, "big")], [1, 2])
link.sendall(request)
answer = link.recv(1)
sys.exit(answer[0] if answer else 1)
"""


def write_shims(folder: Path, address: str) -> None:
    """Write the scripts ``python`` and ``medpair`` that ask the server at ``address``."""
    folder.mkdir(parents=True, exist_ok=True)
    ask = folder / "ask.py"
    ask.write_text(ASK.format(address=address), encoding="utf-8")
    for name in ("python", "medpair"):
        path = folder / name
        # a line "#!" has no room for long paths, nor for spaces in them
        python = shlex.quote(sys.executable)
        path.write_text(SHIM.format(python=python, ask=shlex.quote(str(ask))), encoding="utf-8")
        path.chmod(0o755)


def reduced(words: list[str], sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a command line with its sizes made small.

    Args:
        words: the command line.
        sizes: options by what they belong to: a verb (``medpair report``), or a bundle and its
            config (``wgan_sn_mp train.json``). An option replaces the command's own.
    """
    text = " ".join(words)
    for key, options in sizes.items():
        bundle = key.endswith(".json") and all(part in text for part in key.split())
        if not bundle and words[:2] != key.split():
            continue
        for name, value in options.items():
            flag = f"--{name}"
            if flag in words:
                at = words.index(flag)
                words = words[:at] + words[at + 2 :]
            words = [*words, flag, value if isinstance(value, str) else repr(value)]
    return words


def serve(address: str, sizes: Mapping[str, Mapping[str, Any]], shims: str) -> None:
    """Answer requests until the process is ended."""
    import monai.bundle.__main__  # noqa: F401
    import torch

    import medpair.cli
    import medpair.evidence  # noqa: F401

    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        link, _ = listener.accept()
        # a child for each request: a command may ask for commands of its own
        if os.fork() == 0:
            listener.close()
            _answer(link, sizes, shims)
        link.close()
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _answer(link: socket.socket, sizes: Mapping[str, Mapping[str, Any]], shims: str) -> None:
    """Run one command in a child of this process, and send its exit code."""
    head, files, _, _ = socket.recv_fds(link, 8, 2)
    length, request = int.from_bytes(head, "big"), b""
    while len(request) < length:
        request += link.recv(length - len(request))
    words, folder, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # commands that start others start them here too
        sys.executable = f"{shims}/python"
        os._exit(_run(reduced(words, sizes)))
    _, status = os.waitpid(child, 0)
    link.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))
    os._exit(0)


def _run(words: list[str]) -> int:
    """Run a command line in this process; return its exit code."""
    try:
        if words[:3] == ["python", "-m", "monai.bundle"]:
            sys.argv = words[2:]
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        elif words[:2] == ["python", "-m"] and words[2].startswith("medpair."):
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        elif words[0] == "medpair":
            from medpair.cli import main

            sys.argv = words
            main()
        else:
            print(f"no such command here: {words}", file=sys.stderr)
            return 127
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
