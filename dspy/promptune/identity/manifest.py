"""What a run is: written down at its beginning, and compared when it is taken up again."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import dspy
from dspy.promptune.identity.belonging import user_classes
from dspy.promptune.identity.encoding import as_json, digest, encode, know_types, restorable, type_name
from dspy.promptune.identity.fingerprint import RULE, Fingerprint, fingerprint, lm_settings
from dspy.promptune.limits.views import without_gateway
from dspy.promptune.options import embedder_of, plain

if TYPE_CHECKING:
    from dspy.primitives.module import Module
    from dspy.promptune.space import PromptSpace

__all__ = [
    "FORMAT",
    "candidates_of",
    "compile_manifest",
    "data_of",
    "differences",
    "embedder_known",
    "embedder_name",
    "lm_of",
    "name_of",
    "noticed",
    "options_of",
    "program_of",
    "search_manifest",
    "versions",
]

FORMAT = 1
COMPARED = (
    "format", "kind", "upstream", "program", "metric", "code", "language_model", "model_settings", "adapter", "data",
    "settings",
)  # fmt: skip
DIGESTS = {
    "digest": ": other examples, or another order", "demos": "", "source": ": the code of the program's class",
    "settings.candidates": "", "code": ": the code, or what it uses",
}  # fmt: skip
SHOWN_MODELS = ("task_model", "prompt_model")
SHOWN_KINDS = 5  # of what in a data set cannot be compared
SHOWN_PARTS = 3  # of what a digest covers and has changed
SHOWN = 80  # characters of a text that has changed
LM_SETTINGS = (
    "temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "n", "stop", "seed", "reasoning_effort",
    "frequency_penalty", "presence_penalty", "response_format",
)  # fmt: skip


@cache  # an installed package's version is read from its metadata, which takes milliseconds
def versions() -> Mapping[str, str]:
    """Versions of what makes the numbers. Upstream's is the part of ``dspy`` before the plus."""
    found = {"python": sys.version.split()[0]}
    for name in ("dspy", "optuna", "torch", "botorch", "gpytorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    upstream, _, fork = found.get("dspy", "").partition("+")
    return {**found, "upstream": upstream, "fork": fork}


def name_of(function: Any) -> str:
    """How a metric or an embedder is called: module and name, or the type of an object."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{name}"


def program_of(program: Module) -> dict[str, Any]:
    """The shape of a program: its predictors with their signatures and demos, and a digest of its class's source."""
    return {
        "class": type(program).__qualname__,
        "source": _source(type(program)),
        "predictors": {name: _predictor(predictor) for name, predictor in program.named_predictors()},
    }


def lm_of(lm: Any) -> dict[str, Any] | None:
    """The name of a language model and those of its settings that decide its answers. No addresses, no keys."""
    if lm is None:
        return None
    kwargs = getattr(lm, "kwargs", None) or {}
    chosen = {name: encode(kwargs[name]) for name in LM_SETTINGS if kwargs.get(name) is not None}
    return {"model": str(getattr(lm, "model", type(lm).__name__)), **chosen}


def more_of(lm: Any, name: str) -> dict[str, Any] | None:
    """The other settings of a language model that may change its answers, and the code of a user's class.

    Its attributes are noted, not compared: those of a class of the user's say how it is served as often as what it
    answers. Code is compared with that of the same class, not with another's.
    """
    if lm is None:
        return None
    found = {setting: value for setting, value in lm_settings(lm).items() if setting not in LM_SETTINGS}
    kind = type(without_gateway(lm))
    if not user_classes(kind):
        return found
    held = {"own_class": type_name(kind), "attributes": Fingerprint(lm, name).attributes}
    return {**found, **held, **fingerprint(kind, name)}


def adapter_of(adapter: Any) -> dict[str, Any]:
    """Which adapter writes the prompts, and how it is set."""
    adapter = dspy.ChatAdapter() if adapter is None else adapter
    return {"name": type(adapter).__qualname__, **fingerprint(adapter, "adapter")}


def _models(program: Module, lms: Mapping[str, Any]) -> dict[str, Any]:
    """All language models of a run that it can know of, by name."""
    own = {f"program.{name}": predictor.lm for name, predictor in program.named_predictors()}
    return {**lms, **{name: lm for name, lm in own.items() if lm is not None}}


def data_of(examples: Sequence[Any], name: str = "data") -> dict[str, Any]:
    """Number and digest of a data set, order included; objects in it are compared as those are that code reaches."""
    if restorable(list(examples)):
        return {"examples": len(examples), "digest": digest(list(examples))}
    found = fingerprint(list(examples), name)
    unknown = sorted({re.sub(r"\[\d+\]", "", each) for each in found.get("unknown", ())})
    return {"examples": len(examples), "code": found["code"], **({"unknown": unknown[:SHOWN_KINDS]} if unknown else {})}


def candidates_of(space: PromptSpace) -> dict[str, Any]:
    """The candidates as JSON, by the names of the study's parameters, without those that its search has appended."""
    return {part.name: encode(part.given(space.place or "")) for part in space.parts}


def embedder_name(embedder: Any) -> str:
    """Which embedder gives candidates their meaning."""
    if isinstance(embedder, str):
        return embedder
    model = getattr(embedder, "model", None)
    return model if isinstance(model, str) and model else name_of(embedder if model is None else model)


def embedder_known(sampler: Any, options: Mapping[str, Any]) -> str | None:
    """Which embedder a sampler reads prompts with; ``None`` for one that does not read them, or is not built yet."""
    embedder = embedder_of(sampler, options)
    return None if embedder is None else embedder_name(embedder)


def search_manifest(space: PromptSpace, evaluate: Any, n_examples: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a search over a space is, as attributes of its study."""
    candidates = candidates_of(space)
    return {
        "format": FORMAT,
        "digests": RULE,
        "kind": "search",
        "versions": dict(versions()),
        "upstream": versions()["upstream"],
        "metric": name_of(evaluate),
        "code": {"metric": fingerprint(evaluate, "metric")},
        "settings": {
            **options_of({"n_examples": n_examples}),
            "candidates": {name: digest(each) for name, each in candidates.items()},
        },
        "candidates": candidates,
        "options": options_of(options),
    }


def compile_manifest(
    program: Module,
    data: Mapping[str, Sequence[Any]],
    *,
    metric: Any,
    lms: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    teacher: Any = None,
) -> dict[str, Any]:
    """What a compile is, as attributes of its study: what is compared on resuming, and what is good to know."""
    for predictor in program.predictors():
        for field in predictor.signature.fields.values():
            know_types(field.annotation)
    sampler_options = options.get("sampler_options") or {}
    hidden = ("sampler_options", "storage", "resume", "study_name", "share", "instructions", "demo_sets", "callbacks")
    return {
        "format": FORMAT,
        "digests": RULE,
        "kind": "compile",
        "versions": dict(versions()),
        "program": program_of(program),
        "metric": name_of(metric),
        "upstream": versions()["upstream"],
        "code": {
            name: fingerprint(part, name)
            for name, part in {"program": program, "metric": metric, "teacher": teacher}.items()
            if part is not None
        },
        "language_model": {name: lm_of(lm) for name, lm in lms.items() if name in SHOWN_MODELS},
        "model_settings": {name: more_of(lm, name) for name, lm in _models(program, lms).items()},
        "adapter": adapter_of(dspy.settings.adapter),
        "data": {name: data_of(examples, name) for name, examples in data.items()},
        "settings": options_of(settings),
        "options": options_of({**{k: v for k, v in options.items() if k not in hidden}, **sampler_options}),
        "embedder": embedder_known(options.get("sampler"), sampler_options),
    }


def options_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON: plain values as they are, of objects the name."""
    return {name: plain(value) if restorable(value) else name_of(value) for name, value in options.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of a run has changed so that its old scores say nothing about the new one: one line each.

    Digests that an earlier version made by another rule are not compared; those of this one replace them.
    """
    found: list[str] = []
    same_rule = old.get("digests") == new.get("digests")
    for part in COMPARED:
        if part in old and part in new:
            _compare(part, old[part], new[part], found, same_rule)
    digests = {**(new.get("code") or {}), **(new.get("model_settings") or {}), **(new.get("data") or {})}
    for code in [*digests.values(), new.get("adapter")]:
        found += [f"{each} cannot be compared with what it was" for each in (code or {}).get("unknown", ())]
    found = list(dict.fromkeys(found))
    if new.get("kind") == "search":  # of which the code that gives the scores is called otherwise
        return [re.sub("^metric", "evaluate", each) for each in found]
    return found


def other_sizes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What of two runs has other numbers of candidates, in words, as far as they are known; their trials cannot mix."""
    sizes = [{name: len(each) for name, each in (one.get("candidates") or {}).items()} for one in (old, new)]
    changed = [name for name in sizes[0] if sizes[0][name] != sizes[1].get(name)] if all(sizes) else []
    found = [f"candidates.{name} has {sizes[0][name]} there, not {sizes[1].get(name, 0)}" for name in changed]
    return ", ".join([*found, "which needs another study_name"] if found else [])


def noticed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What of the user's own language models has changed that is no setting of DSPy's, in words, or nothing."""
    before, after = _attributes(old), _attributes(new)
    pairs = [(name, as_json(before[name]), as_json(value)) for name, value in after.items() if name in before]
    found = [_changed(name, was, now) for name, was, now in pairs if was != now]
    if not found:
        return ""
    return f"{'; '.join(found)}. Use another study_name if that changes the answers."


def _attributes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    parts = [*(manifest.get("code") or {}).values(), *(manifest.get("model_settings") or {}).values()]
    return {name: value for part in parts for name, value in ((part or {}).get("attributes") or {}).items()}


def _compare(name: str, old: Any, new: Any, found: list[str], same_rule: bool) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if key == "code" and _comparable(old, new, key, same_rule) and old.get(key) != new.get(key):
                found.append(_other_code(name, old, new))
            elif not _left_out(key, old, new, same_rule):
                _compare(f"{name}.{key}", old.get(key), new.get(key), found, same_rule)
    elif new is None and isinstance(old, Mapping):
        found.append(f"{name} is gone")
    elif old is None and isinstance(new, Mapping):
        found.append(f"{name} is new")
    elif as_json(old) != as_json(new):
        found.append(_changed(name, as_json(old), as_json(new)))


def _left_out(key: str, old: Mapping[str, Any], new: Mapping[str, Any], same_rule: bool) -> bool:
    """Whether a part of a description is not compared by itself."""
    if key == "source":
        return old.get(key) is None or new.get(key) is None or _python(old) != _python(new)
    if key == "digest" and old.get("examples") != new.get("examples"):
        return True  # their numbers differ, which says it
    if key in ("digest", "demos") and not same_rule:
        return old.get(key) is None or new.get(key) is None  # of objects, which had no value of their own
    return key in ("code", "parts", "own_class", "attributes") or (key == "unknown" and not same_rule)


def _comparable(old: Mapping[str, Any], new: Mapping[str, Any], key: str, same_rule: bool) -> bool:
    """Whether two digests of code were made by one rule and one version of Python."""
    if old.get("own_class") != new.get("own_class"):
        return False
    if key in old and key in new:
        return bool(_python(old, key) == _python(new, key))
    return same_rule and "examples" not in old  # a data set says so by its other digest


def _other_code(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """That code is another, with the names of what has changed in it."""
    name = name.removeprefix("code.")
    if name.startswith("data."):
        return f"{name} has changed{DIGESTS['digest']}"
    before, after = old.get("parts") or {}, new.get("parts") or {}
    parts = [part for part in before if part in after and before[part] != after[part]]
    parts = parts or [part for part in {**before, **after} if part not in before or part not in after]
    named = dict.fromkeys(part.partition(" #")[0] for part in parts if part != name.rpartition(".")[2])
    shown = list(named)[:SHOWN_PARTS] if before else []
    more = ", ..." if len(named) > SHOWN_PARTS else ""
    return f"{name} has changed{DIGESTS['code']}" + (f" ({', '.join(shown)}{more})" if shown else "")


def _changed(name: str, old: str, new: str) -> str:
    """One difference in words; of what is stored as a digest only that there is one."""
    whole, _, last = name.rpartition(".")
    if last == "unknown":
        return f"{whole.removeprefix('code.')} uses other things that cannot be compared"
    if last in DIGESTS or whole in DIGESTS:
        return f"{whole if last == 'digest' else name} has changed{DIGESTS.get(last, '')}"
    pairs = enumerate(zip(old, new, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return f"{name} was {_short(old, same)}, is {_short(new, same)}"


def _python(part: Mapping[str, Any], key: str = "source") -> Any:
    return str(part.get(key) or "").partition(":")[0]


def _short(text: str, same: int) -> str:
    """A text of JSON, of a long one the part where it begins to differ."""
    if len(text) <= SHOWN:
        return text
    begin = max(0, min(same, len(text) - SHOWN // 2) - SHOWN // 4)
    end = begin + SHOWN
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"


def _predictor(predictor: Any) -> dict[str, Any]:
    """A predictor as it is shown; demos that hold objects are a part of the program's code."""
    signature, given = predictor.signature, list(predictor.demos)
    demos = digest(given) if restorable(given) else None
    fields = {
        name: {
            "kind": (field.json_schema_extra or {}).get("__dspy_field_type"),
            "type": str(field.annotation),
            "desc": (field.json_schema_extra or {}).get("desc"),
        }
        for name, field in signature.fields.items()
    }
    return {"instructions": signature.instructions, "fields": fields, "demos": demos}


def _source(kind: type) -> str | None:
    """Digest of a class's source without comments and layout; ``None`` where there is no source."""
    if kind.__module__.startswith("dspy."):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return f"{sys.version_info[0]}.{sys.version_info[1]}:{digest(ast.dump(tree))}"
