"""The settings of a language model that can change its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pydantic

from dspy.promptune.identity.encoding import digest, encode, type_name
from dspy.promptune.identity.graph import NOTHING, Places, inline
from dspy.promptune.secrets import is_credential, is_secret

__all__ = ["attributes_of", "lm_settings", "schema_of"]

NO_ANSWER = frozenset(
    "api_base base_url api_version organization timeout request_timeout max_retries num_retries cache callbacks "
    "extra_headers headers default_headers user metadata rollout_id stream stream_timeout aws_region_name "
    "vertex_location vertex_project model_list client http_client litellm_params logger_fn launch_kwargs "
    "train_kwargs".split()
)  # where a model is found, and how it is asked, says nothing about what it answers
SETTLED = NO_ANSWER | {"model", "model_type", "kwargs", "use_developer_role", "finetuning_model", "history"}
SERVING = re.compile(
    r"(?:^|_)(?:url|uri|host|port|addr|address|endpoint|socket|session|pid|uuid|client|server|timeout|since|started|"
    r"time|date|seconds|delay|latency|interval|wait|retries)(?:_|$)",
    re.IGNORECASE,
)  # of an attribute that says how or when a model is served
LONG = 80  # characters of a text, beyond which its digest stands for it


def lm_settings(lm: Any) -> dict[str, Any]:
    """The name of a language model and its settings, but for those that change no answer and for credentials."""
    found: dict[str, Any] = {"model": str(getattr(lm, "model", type(lm).__name__))}
    for name in ("model_type", "use_developer_role", "finetuning_model"):
        if getattr(lm, name, None) not in (None, False):
            found[name] = str(getattr(lm, name))
    for name, value in (getattr(lm, "kwargs", None) or {}).items():
        if value is not None and name not in NO_ANSWER and not is_credential(name):
            found[name] = _without_credentials(value)
    return found


def _without_credentials(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_credentials(v) for k, v in value.items() if not is_credential(str(k))}
    if isinstance(value, type):
        return [type_name(value), schema_of(value) if issubclass(value, pydantic.BaseModel) else None]
    return encode(value)


def schema_of(kind: Any) -> Any:
    """The JSON schema of a pydantic model as a digest; its fields where it has none."""
    try:
        return digest(kind.model_json_schema())
    except Exception:
        return [[name, str(field.annotation)] for name, field in kind.model_fields.items()]


def attributes_of(lm: Any, places: Places) -> dict[str, Any]:
    """The plain attributes that a model of a user's class reads as it runs and does not change, long ones as a digest.

    Credentials are left out, and what says where, how and when it is served.
    """
    found: dict[str, Any] = {}
    for name, value in sorted(vars(lm).items()):
        slot = (id(lm), name)
        served = name in SETTLED or is_secret(name) or SERVING.search(name)
        if served or slot not in places.read or places.change(slot, value) or inline(value) is NOTHING:
            continue
        plain = isinstance(value, (bool, int, float, type(None))) or (isinstance(value, str) and len(value) <= LONG)
        found[name] = value if plain else digest(inline(value))
    return found
