"""Prices of language models, from the list that DSPy has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from dspy.promptune.secrets import said

__all__ = ["price_of"]

logger = logging.getLogger(__name__)


@lru_cache(256)
def price_of(model: str) -> tuple[float, float] | None:
    """Dollars of one token of a prompt and of one of an answer; ``None`` where the list does not know the model."""
    try:
        known = _known(model)
        return float(known["input_cost_per_token"]), float(known["output_cost_per_token"])
    except Exception as error:
        logger.debug("No price of %s: %s", model, said(error))
        return None


def _known(model: str) -> Mapping[str, Any]:
    """The model's entry in DSPy's own price list or, in its older versions, in litellm's."""
    try:
        from dspy.clients.model_metadata import model_info
    except ImportError:
        from litellm import get_model_info

        known: Any = get_model_info(model)
    else:
        provider, _, name = model.partition("/")
        known = model_info(provider, name)
    found: Mapping[str, Any] = known
    return found
