"""The server: one asyncio loop, in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.server.behavior import BODY, Faults, Latency, Messages, digest
from tests.server.records import Record
from tests.server.rules import Prompt

ROOT = Path(__file__).resolve().parents[2]
REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Unavailable"}


@dataclass(frozen=True)
class Behavior:
    """All that decides an answer; it must be picklable for a server in a process of its own."""

    rule: Callable[[Messages], str]
    latency: Latency
    faults: Faults


class LMServer:
    """An OpenAI-compatible language model on a free port of 127.0.0.1, for as long as the ``with`` block lasts.

        with LMServer(TaskRule(answers), latency=Latency(0.4), process=True) as server:
            lm = dspy.LM("openai/rules", api_base=server.url, api_key="none", cache=False)

    Args:
        rule: ``messages -> text``: called in the server's loop, so quick. Deterministic in the messages.
        latency: How late answers are.
        faults: Which requests go wrong; a request that hangs is answered when the server stops.
        process: Run in a process of its own, so that the client's processor time is measured alone. The rule must
            then be picklable and importable from the repository's root. It ends with this process whatever happens.
    """

    def __init__(
        self,
        rule: Callable[[Messages], str],
        *,
        latency: Latency | None = None,
        faults: Faults | None = None,
        process: bool = False,
    ) -> None:
        self.behavior = Behavior(rule, latency or Latency(), faults or Faults())
        self.port = 0
        self._host: _Thread | _Process = _Process() if process else _Thread()

    @property
    def url(self) -> str:
        """Base address for ``dspy.LM(api_base=...)``."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LMServer:
        self.port = self._host.start(self.behavior)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.stop()

    def records(self) -> list[Record]:
        """Every request answered or given up since the start or the last ``reset``, in the order of their end."""
        return [Record(*row) for row in self._control("records")]

    @property
    def requests(self) -> int:
        """Number of requests that arrived, faults included."""
        return int(self._control("requests"))

    def reset(self) -> None:
        """Forget records and counts, and the attempts that faults depend on. Call it while nothing is in flight."""
        self._control("reset")

    def _control(self, what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{what}", timeout=30) as answer:
            return json.load(answer)


class Ask(NamedTuple):
    """The request's part of a record."""

    key: str
    label: str
    prompt: str
    item: str


class Core:
    """Counts, records and decisions of one server; touched by its loop alone."""

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.reset()

    def reset(self) -> bool:
        """Start counting again."""
        self.records: list[Record] = []
        self.attempts: Counter[str] = Counter()
        self.requests = self.in_flight = 0
        return True

    def control(self, path: str) -> bytes:
        """The answer to a GET."""
        name = path.rpartition("/")[2]
        found = {"records": lambda: self.records, "requests": lambda: self.requests, "reset": self.reset}.get(name)
        return _response(200, found()) if found else _response(404, {"error": {"message": f"no {path} here"}})

    def decide(self, body: bytes) -> tuple[Ask, float, int, bytes | None]:
        """What was asked, latency, status and bytes of the answer to a POST; ``None`` closes, infinity hangs."""
        request = json.loads(body)
        messages, model = request["messages"], request.get("model", "rules")
        key = digest(json.dumps(messages))
        attempt = self.attempts[key]
        self.attempts[key] += 1
        faults = self.behavior.faults
        prompt = Prompt.read(messages)
        ask = Ask(key, prompt.label, prompt.digest, digest(next(iter(prompt.inputs.values()))))
        if faults.limit is not None and self.in_flight > faults.limit:
            return ask, 0.0, 429, _failure(429, faults.retry_after)
        kind, late = faults.kind(messages, key, attempt), self.behavior.latency.seconds(key)
        if kind is None:
            return ask, late, 200, _completion(model, self.behavior.rule(messages), messages)
        if kind == "hang":
            return ask, float("inf"), 0, None
        if kind == "close":
            return ask, late, 0, None
        if kind.startswith(BODY):
            return ask, late, 200, _raw(200, kind.removeprefix(BODY).encode())
        if kind == "malformed":
            return ask, late, 200, _raw(200, b'{"choices": [{"mess')
        return ask, 0.0 if kind == "429" else late, int(kind), _failure(int(kind), faults.retry_after)


class Connection(asyncio.Protocol):
    """One connection of a client: requests one after another, kept alive."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).decode("latin-1")
            length = _content_length(head)
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            self._answer(head, body)

    def _answer(self, head: str, body: bytes) -> None:
        method, path, _ = head.split(" ", 2)
        if method == "GET":
            self._send(self.core.control(path))
            return
        start = time.monotonic()
        core = self.core
        core.requests += 1
        core.in_flight += 1
        ask, late, status, answer = core.decide(body)
        if late == float("inf"):
            return
        late = max(0.0, late - (time.monotonic() - start))
        self.loop.call_later(late, self._finish, start, status, ask, answer)

    def _finish(self, start: float, status: int, ask: Ask, answer: bytes | None) -> None:
        self.core.in_flight -= 1
        self.core.records.append(Record(start, time.monotonic(), status, *ask))
        if answer is not None:
            self._send(answer)
        elif self.transport is not None:
            self.transport.abort()

    def _send(self, answer: bytes) -> None:
        if self.transport is not None:
            self.transport.write(answer)


async def serve(behavior: Behavior, started: Callable[[int], None], stop: asyncio.Event) -> None:
    """Listen until ``stop`` is set; ``started`` is told the port."""
    core = Core(behavior)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(core), "127.0.0.1", 0, backlog=1024)
    started(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()


class _Thread:
    """The loop in a daemon thread of this process."""

    def start(self, behavior: Behavior) -> int:
        ready: list[int] = []
        up = threading.Event()

        def started(port: int) -> None:
            ready.append(port)
            up.set()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await serve(behavior, started, self._stop)

        self._thread = threading.Thread(target=asyncio.run, args=(main(),), name="lm-server", daemon=True)
        self._thread.start()
        if not up.wait(10):
            raise RuntimeError("The server did not start within 10 seconds.")
        return ready[0]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


class _Process:
    """The loop in a child that ends when its standard input does, so with its parent at the latest."""

    def start(self, behavior: Behavior) -> int:
        code = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; from tests.server.lm import child; child()"
        self._child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdin is not None and self._child.stdout is not None
        payload = pickle.dumps(behavior)
        self._child.stdin.write(len(payload).to_bytes(8, "big") + payload)
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("The server's process ended before it was ready: is the rule importable?")
        return int(line)

    def stop(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(10)
        self._child.stdout.close()


def child() -> None:
    """The main function of a server's own process."""
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    behavior = pickle.loads(sys.stdin.buffer.read(size))

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def parent() -> None:
            with contextlib.suppress(OSError, RuntimeError):
                sys.stdin.buffer.read()
                loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=parent, daemon=True).start()
        await serve(behavior, lambda port: print(port, flush=True), stop)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def _content_length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


def _completion(model: str, text: str, messages: Messages) -> bytes:
    asked, told = sum(len(str(message["content"])) for message in messages) // 4, len(text) // 4
    usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    kind = {"id": "rules", "object": "chat.completion", "created": 0, "model": model}
    return _response(200, {**kind, "choices": [choice], "usage": usage})


def _failure(status: int, retry_after: float) -> bytes:
    headers = f"Retry-After: {retry_after}\r\n" if status in (429, 503) else ""
    return _response(status, {"error": {"message": REASONS[status], "type": "rules", "code": str(status)}}, headers)


def _response(status: int, content: Any, headers: str = "") -> bytes:
    return _raw(status, json.dumps(content).encode(), headers)


def _raw(status: int, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode() + body
