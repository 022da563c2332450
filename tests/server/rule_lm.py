"""A deterministic language model without a server: for tests that look at the calls themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import dspy
from tests.server.behavior import Messages
from tests.server.rules import Prompt, chat_text


class Call(NamedTuple):
    """One call: what the ChatAdapter prompt asks for, its rollout (``None`` for the first), its messages."""

    label: str
    rollout: int | None
    messages: Messages


class RuleLM(dspy.BaseLM):
    """Answers ``rule(messages)``; copies share ``calls``, every call in the order of its beginning.

    A proposed instruction carries the number of its rollout. ``fault(call)`` may raise instead of an answer.
    """

    forward_contract = "legacy"

    def __init__(
        self,
        rule: Callable[[Messages], str],
        *,
        fault: Callable[[Call], None] = lambda call: None,
        seconds: float = 0.0,
    ) -> None:
        super().__init__("rules", cache=False, num_retries=0)
        self.rule, self.fault, self.seconds = rule, fault, seconds
        self.calls: list[Call] = []
        self.level = SimpleNamespace(now=0, most=0, lock=threading.Lock())

    def __deepcopy__(self, memo: dict[int, Any]) -> RuleLM:
        return self.copy()

    def forward(self, prompt: str | None = None, messages: Messages | None = None, **kwargs: Any) -> Any:
        messages = messages or [{"role": "user", "content": prompt}]
        asked = Prompt.read(messages)
        call = Call(asked.label, {**self.kwargs, **kwargs}.get("rollout_id"), messages)
        level = self.level
        with level.lock:
            self.calls.append(call)
            level.now += 1
            level.most = max(level.most, level.now)
        try:
            time.sleep(self.seconds)
            self.fault(call)
            text = self.rule(messages)
        finally:
            with level.lock:
                level.now -= 1
        if call.label == "proposed_instruction":
            text = chat_text({call.label: f"{text.splitlines()[1]} Rollout {call.rollout}."})
        message = SimpleNamespace(content=text, tool_calls=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage={}, model="rules")
