"""The process from which :mod:`tests.preloaded` forks programs: ``python -c "… serve(DESCRIPTOR, MODULES)"``.

Everything after the fork is as in a new process that runs ``python PROGRAM``: its standard streams, environment, folder
and arguments, ``__main__``, and its end, with all that is registered for it.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
from pathlib import Path
from typing import Any

LONGEST_REQUEST_BYTES = 1 << 20


def serve(descriptor: int, modules: list[str]) -> None:
    """Imports the modules, then forks a child for each request, until nobody can ask any more.

    A request is JSON, with three descriptors: those of the child's output and errors, and one to write its process id
    to and, at its end, its exit code.
    """
    for module in modules:
        importlib.import_module(module)
    faulthandler.enable()  # a child that is aborted says where it was
    sys.path.pop(0)  # that of ``-c``; a program has the folder it is in
    gc.collect()
    gc.freeze()  # else the children's collections would copy the memory of all modules
    with socket.socket(fileno=descriptor) as channel, selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while request := _next_request(channel, selector):
            order, (out, errors, status) = request
            child = os.fork()
            if child == 0:
                others = [key.data for key in selector.get_map().values() if key.data]
                for descriptor in (channel.detach(), status, *(other for _, other in others)):
                    os.close(descriptor)
                selector.close()
                _become(order, out, errors)
                return
            os.close(out)
            os.close(errors)
            os.write(status, f"{child}\n".encode())
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, status))
    os._exit(0)  # the children's own ends run what is registered for them


def _next_request(
    channel: socket.socket, selector: selectors.BaseSelector
) -> tuple[dict[str, Any], list[int]] | None:
    """Meanwhile it says which children have ended."""
    while True:
        for key, _ in selector.select():
            if key.data is None:
                message, descriptors, _, _ = socket.recv_fds(channel, LONGEST_REQUEST_BYTES, 3)
                return (json.loads(message), descriptors) if message else None
            child, status = key.data
            selector.unregister(key.fd)
            os.close(key.fd)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(status, f"{code}\n".encode())
            os.close(status)


def _become(request: dict[str, Any], out: int, errors: int) -> None:
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (errors, 2)):
        os.dup2(source, target)
        os.close(source)
    if request["is_new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _run(*request["arguments"])


def _run(first: str, *others: str) -> None:
    """``python FIRST OTHERS``, where the first is ``-c``, ``-m`` or a file."""
    main = sys.modules["__main__"]
    if first == "-m":
        module, *sys.argv[1:] = others
        sys.path.insert(0, os.getcwd())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        source, *sys.argv[1:] = others
        sys.path.insert(0, "")
        exec(compile(source, "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [first, *others]
        sys.path.insert(0, str(Path(first).resolve().parent))
        main.__file__ = first
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)
