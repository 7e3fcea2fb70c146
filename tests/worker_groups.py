"""Two workers on this machine: processes of gloo, forked from one that has imported everything."""

import json
import multiprocessing
import os
import socket

import torch

from ffjord_kit.training.distributed import ENVIRONMENT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ffjord_kit.training", "torch._dynamo", "ffjord_kit.cli", "ffjord_kit.estimator.ffjord"])


def enter(job, rank, size, port, folder, args, environment):
    torch.set_num_threads(1)
    values = (rank, size, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(ENVIRONMENT, values, strict=True)}, **environment)
    result = job(folder, *args)
    (folder / f"{rank}.json").write_text(json.dumps(result))


class Group:
    """A job on two workers, under way."""

    def __init__(self, job, folder, *args, **environment):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            SERVER.Process(target=enter, args=(job, rank, 2, port, folder, args, environment)) for rank in (0, 1)
        ]
        for process in self.processes:
            process.start()

    def codes(self):
        for process in self.processes:
            process.join(60)
        late = [process.kill() for process in self.processes if process.is_alive()]
        assert not late, "a worker hangs"
        return [process.exitcode for process in self.processes]

    def results(self):
        assert self.codes() == [0, 0]
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def message(kind, make):
    """Return the message of an error that a call raises; "nothing" if it raises none."""
    try:
        make()
    except kind as error:
        return str(error)
    return "nothing"
