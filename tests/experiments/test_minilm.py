"""The sentence encoder: BERT's equations, written again in NumPy, and the names of its weights."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers import generator
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import erf, softmax

from experiments.minilm import LINEAR, SentenceEncoder, Sizes, read_weights, whole_batches

SIZES = Sizes(vocabulary=11, positions=6, width=8, layers=2, heads=2, hidden=12)


def bert_tensors(sizes):
    rng = generator(0)
    d, h = sizes.width, sizes.hidden
    shapes = {f"embeddings.{name}_embeddings.weight": (count, d) for name, count in
              (("word", sizes.vocabulary), ("position", sizes.positions), ("token_type", 2))}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for n in range(sizes.layers):
        for name in LINEAR.values():
            rows, columns = (h, d) if name == "intermediate.dense" else (d, h) if name == "output.dense" else (d, d)
            shapes[f"encoder.layer.{n}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{n}.{name}.bias"] = (rows,)
        norms += [f"encoder.layer.{n}.{name}" for name in ("attention.output.LayerNorm", "output.LayerNorm")]
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def embedding(tensors, sizes, ids):
    """That of one text, in float64."""
    T = {name: value.astype(np.float64) for name, value in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return scaled * T[f"{name}.weight"] + T[f"{name}.bias"]

    def linear(x, name):
        return x @ T[f"{name}.weight"].T + T[f"{name}.bias"]

    x = T["embeddings.word_embeddings.weight"][ids] + T["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + T["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for n in range(sizes.layers):
        at, size = f"encoder.layer.{n}.", sizes.width // sizes.heads
        q, k, v = (linear(x, at + LINEAR[name]) for name in ("query", "key", "value"))
        heads = [slice(i, i + size) for i in range(0, sizes.width, size)]
        found = [softmax(q[:, s] @ k[:, s].T / np.sqrt(size), axis=1) @ v[:, s] for s in heads]
        x = norm(x + linear(np.concatenate(found, axis=1), at + LINEAR["out"]), at + "attention.output.LayerNorm")
        inner = linear(x, at + LINEAR["up"])
        inner = 0.5 * inner * (1.0 + erf(inner / np.sqrt(2.0)))
        x = norm(x + linear(inner, at + LINEAR["down"]), at + "output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_embeddings_are_those_of_the_equations_and_padding_does_not_matter():
    encoder, tensors = SentenceEncoder(SIZES, nnx.Rngs(0)), bert_tensors(SIZES)
    read_weights(encoder, tensors)
    texts = [[1, 4, 7, 2], [3, 2]]
    tokens = np.array([texts[0], [*texts[1], 0, 0]])
    seen = {}
    found = encoder(
        jnp.asarray(tokens), jnp.arange(4) < jnp.array([[4], [2]]), lambda n, name, x: seen.update({(n, name): x})
    )
    assert_allclose(found, [embedding(tensors, SIZES, ids) for ids in texts], atol=2e-5)
    assert set(seen) == {(n, name) for n in range(2) for name in LINEAR}
    assert seen[1, "down"].shape == (2, 4, 12)
    assert_array_equal(seen[0, "query"], seen[0, "key"])


def test_texts_without_a_mask_are_all_there():
    encoder = SentenceEncoder(SIZES, nnx.Rngs(0))
    tokens = jnp.asarray([[1, 4, 7, 2], [3, 2, 2, 5]])
    assert_allclose(encoder(tokens), encoder(tokens, jnp.ones((2, 4), dtype=bool)), atol=1e-6)


def test_texts_come_in_batches_of_one_length():
    class Tokenizer:
        def encode(self, text):
            return SimpleNamespace(ids=[1, *range(10, 10 + len(text)), 2])

    texts = ["a" * n for n in (40, 13, 14, 35, 15, 300, 90, 62)]
    batches = list(whole_batches(Tokenizer(), texts, 64, 2))  # in the order in which they are full
    assert [batch.shape for batch in batches] == [(2, 32), (2, 16), (2, 64)]  # of 40 and 35, 14 and 15, 300 and 90
    assert_array_equal(batches[0][1], [1, *range(10, 40), 2])  # the last token is the end, whatever is cut
    assert_array_equal(batches[1], [[1, *range(10, 24), 2]] * 2)
