"""Jobs in several processes, with the environment that ``torchrun`` gives them.

The processes are forked from a server that has imported everything once (an import takes longer
than a job) and has computed nothing, so that forking it is safe.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from medpair.data.sampling import ShareSampler
from medpair.engines import distributed, segmentation, vid2vid, wgan  # noqa: F401
from medpair.inferers import image_sequence, label_writer, pairs, three_views  # noqa: F401
from tests.bundles.conftest import run, workflow

# Far longer than any job, shorter than the collectives' own timeout
PATIENCE = 600.0


def in_processes(count: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``job(*arguments)`` returned in each process; an exit gives its code.

    Tensors would come as handles of memory that ends with their process: jobs return arrays.

    Raises:
        AssertionError: if a process does not end, or ends with an exception: with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(rank, count, port, sender, job, arguments))
        process.start()
        sender.close()
        started.append((process, receiver))
    results, failures = [], []
    try:
        for rank, (process, receiver) in enumerate(started):
            assert receiver.poll(PATIENCE), f"process {rank} does not end"
            try:
                kind, value = receiver.recv()
            except EOFError:  # it ended without a word
                kind, value = "exit", None
            process.join(PATIENCE)
            results.append(process.exitcode if kind == "exit" else value)
            failures += [f"process {rank}: {value}"] if kind == "error" else []
    finally:
        for process, _ in started:
            if process.is_alive():
                process.kill()
    assert not failures, "\n".join(failures)
    return results


def _child(
    rank: int, count: int, port: int, sender: Connection, job: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        sender.send(("result", job(*arguments)))
    except SystemExit as stop:
        sender.send(("exit", None))
        raise SystemExit(stop.code) from None
    except BaseException:
        sender.send(("error", traceback.format_exc()))
        raise SystemExit(1) from None


def digest(engine: Any) -> str:
    """Return a hash of a trainer's parameters and of their averages; not of running statistics."""
    result = hashlib.sha256()
    for name, thing in sorted(engine.state_objects().items()):
        network = getattr(thing, "network", thing)
        if isinstance(network, torch.nn.Module):
            for key, value in network.named_parameters():
                result.update(f"{name}.{key}".encode() + value.detach().numpy().tobytes())
    return result.hexdigest()


def train(bundle: str, configs: list[str], settings: dict[str, Any]) -> str:
    """Run a training; return the hash of its weights."""
    result = run(bundle, configs, **settings)
    return digest(result.parser.get_parsed_content("train#trainer"))


def train_until_signal(bundle: str, configs: list[str], settings: dict[str, Any]) -> None:
    """Train; the second process is sent SIGTERM in its second step."""
    trainer = workflow(bundle, configs, **settings).parser.get_parsed_content("train#trainer")
    if distributed.rank() == 1:
        trainer.add_event_handler(
            Events.ITERATION_STARTED(once=2), lambda: os.kill(os.getpid(), signal.SIGTERM)
        )
    trainer.run()


def train_to_nan(bundle: str, configs: list[str], settings: dict[str, Any]) -> str:
    """Train a diffusion model whose loss is NaN in the second process's second step."""
    trainer = workflow(bundle, configs, **settings).parser.get_parsed_content("train#trainer")
    loss = trainer.learning.module
    task = loss.task

    def broken(*given: Any) -> dict[str, torch.Tensor]:
        bad = distributed.rank() == 1 and trainer.state.iteration == 2
        return {key: value * (float("nan") if bad else 1.0) for key, value in task(*given).items()}

    loss.task = broken
    try:
        trainer.run()
    except FloatingPointError as error:
        return str(error)
    finally:
        distributed.stop()
    return ""


def infer(bundle: str, configs: list[str], settings: dict[str, Any]) -> None:
    """Run an inference."""
    run(bundle, configs, "infer", **settings)


def infer_until_crash(bundle: str, configs: list[str], settings: dict[str, Any]) -> str:
    """Run an inference whose second process dies when its first case is written."""
    result = workflow(bundle, configs, "infer", **settings)
    writer = result.parser.get_parsed_content("postprocessing")
    finish = writer.folder.finish_case

    def die(*given: Any, **more: Any) -> None:
        finish(*given, **more)
        os._exit(9)

    if distributed.rank() == 1:
        writer.folder.finish_case = die
    try:
        result.run()
    except RuntimeError as error:
        return "".join(traceback.format_exception(error))
    return ""


def gradients(
    build: Callable[[], torch.nn.Module],
    batch: dict[str, torch.Tensor],
    loss: str,
    may_skip: bool = False,
) -> dict[str, np.ndarray]:
    """Return the gradients of a module's ``loss`` on this process's share of a batch."""
    distributed.start("cpu")
    module = distributed.data_parallel(build(), may_skip)
    count = len(next(iter(batch.values())))
    share = list(ShareSampler(count, distributed.rank(), distributed.world_size()))
    module(**{key: value[share] for key, value in batch.items()})[loss].backward()
    learned = [pair for pair in module.module.named_parameters() if pair[1].requires_grad]
    found = {key: value.grad.numpy() for key, value in learned}
    distributed.stop()
    return found


def draw(*counters: int) -> np.ndarray:
    """Return random numbers of this process."""
    distributed.start("cpu")
    numbers = torch.rand(4, generator=distributed.rank_generator(*counters))
    distributed.stop()
    return numbers.numpy()
