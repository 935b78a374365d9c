"""Residual networks for small images (ResNet-20 by default), and their layers as an implicit model.

With batch normalisation at its running statistics, every activation is φ of an affine map of earlier ones:

    layer 0 (stem)              x_0 = φ(K_0 * u + b_0)
    block k, first layer        x_{2k+1} = φ(K_{2k+1} * x_{2k} + b_{2k+1})
    block k, second layer       x_{2k+2} = φ(K_{2k+2} * x_{2k+1} + b_{2k+2} + S_k x_{2k})
    outputs                     ŷ = W mean(x_last) + c

where K * is a 3×3 convolution and S_k the identity, or, where a stage begins, every second pixel with zeros for the new
channels: the parameter-free shortcut, "option A". A convolution is a sparse matrix that repeats its kernel, so the
last layers of the network, or all of them, are x = φ(Ax + Bu + b), ŷ = Cx + c with A strictly upper block triangular.

Source: He, Zhang, Ren, Sun, Deep residual learning for image recognition (2016), §4.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from simjax._checks import float_array, positive_integer
from simjax._files import read_safetensors, usable, write_safetensors
from simjax.implicit.model import ImplicitModel
from simjax.states.states import States

FORMAT = "simjax-resnet"
FORMAT_VERSION = 1

STAGES = 3
_PADDING = ((1, 1), (1, 1))
_BATCH = 250  # images of one call in evaluation

Shape = tuple[int, int, int]  # height, width, channels


class ResNet(nnx.Module):
    """A residual network for images with three channels: three stages of basic blocks, ReLU, mean, linear classifier.

    Args:
      blocks: blocks of two layers in a stage; 3 makes ResNet-20, with 19 layers of activations.
      width: channels of the first stage; each following one has twice as many at half the resolution.
      classes: outputs.
      rngs: random numbers for the initial weights; None means `nnx.Rngs(0)`.

    Raises:
      ValueError: a number below 1.

    Examples:
      >>> from simjax.nn import ResNet
      >>> network = ResNet(blocks=1, width=2, classes=5)  # network(images), images (m, 32, 32, 3)
      >>> network.depth
      7
    """

    def __init__(self, blocks: int = 3, width: int = 16, classes: int = 100, *, rngs: nnx.Rngs | None = None) -> None:
        self.blocks = positive_integer("blocks", blocks)
        self.width = positive_integer("width", width)
        self.classes = positive_integer("classes", classes)
        rngs = nnx.Rngs(0) if rngs is None else rngs
        convolutions, norms, channels = [], [], 3
        for layer in range(self.depth):
            out = self.width << self._stage(layer)
            convolutions.append(
                nnx.Conv(
                    channels, out, (3, 3), strides=self._stride(layer), padding=_PADDING, use_bias=False,
                    kernel_init=nnx.initializers.he_normal(), rngs=rngs,
                )
            )  # fmt: skip
            norms.append(nnx.BatchNorm(out, momentum=0.9, rngs=rngs))
            channels = out
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        self.classifier = nnx.Linear(channels, self.classes, rngs=rngs)

    @property
    def depth(self) -> int:
        """Layers of activations: the stem and two a block."""
        return 1 + 2 * STAGES * self.blocks

    def _stage(self, layer: int) -> int:
        return max(layer - 1, 0) // (2 * self.blocks)

    def _stride(self, layer: int) -> int:
        return 2 if layer > 1 and (layer - 1) % (2 * self.blocks) == 0 else 1

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (m, classes) of images (m, height, width, 3), in the network's own precision.

        Batch statistics are used and updated in training mode, running ones in evaluation mode (`network.eval()`).
        """
        before, x = images, images  # the activations of the layer before the last one, and of the last one
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            z = norm(convolution(x))
            if _has_shortcut(layer):
                z = z + _shortcut(before, z.shape)
            before, x = x, jax.nn.relu(z)
        return self.classifier(x.mean(axis=(1, 2)))

    # ---- as an implicit model ------------------------------------------------------------------------------

    def states(self, images: Any, layers: int | None = None, *, with_baseline: bool = True) -> States:
        """The last `layers` layers' states on images (m, height, width, 3), in evaluation mode and float64.

        Inputs u are the activations that feed the first of these layers, one after the other, or the pixels;
        what comes before is computed in the network's own precision. Activations are flattened, channels
        running fastest.

        Args:
          images: as the network was trained on.
          layers: 1 … depth; 2 is the last block. None means all.
          with_baseline: keep the exact implicit form of these layers with the states. It takes a nonzero for each
            time that a kernel is used; rescaling needs it, and makes its A dense.

        Raises:
          ValueError: images or layers that do not fit, weights that are not finite.
        """
        first, pixels = self._first(layers), self._checked_images(images)
        shape = (pixels.shape[1], pixels.shape[2])
        model, U = self.export(layers, shape), self.inputs(pixels, layers)
        slices, sizes = self._slices(first, shape), [int(np.prod(self._shape(k, shape))) for k in self._chosen(first)]
        Z, X = np.zeros((2, len(U), model.n))
        for rows in slices[::-1]:  # the first layer's states lie last
            Z[:, rows] = U @ model.B[rows].T + X @ model.A[rows].T + model.b[rows]
            X[:, rows] = np.maximum(Z[:, rows], 0.0)
        return States(
            inputs=U,
            preactivations=Z,
            activations=X,
            outputs=X @ model.C.T + model.c,
            layer_sizes=tuple(sizes),
            baseline=model if with_baseline else None,
        )

    def inputs(self, images: Any, layers: int | None = None) -> np.ndarray:
        """What feeds the last `layers` layers, (m, p) float64: the inputs of `states` and of a model fitted to them.

        Raises:
          ValueError: images or layers that do not fit.
        """
        first, pixels = self._first(layers), self._checked_images(images)
        if first == 0:
            return pixels.reshape(len(pixels), -1)
        kernels, biases = zip(*(self._folded(layer) for layer in range(first)))
        arrays = [jnp.asarray(array, jnp.float32) for array in (*kernels, *biases)]
        parts = []
        for start in range(0, len(pixels), _BATCH):
            batch = np.zeros((_BATCH, *pixels.shape[1:]), np.float32)  # one shape, so that one program is compiled
            some = pixels[start : start + _BATCH]
            batch[: len(some)] = some
            found = _activations(jnp.asarray(batch), arrays[:first], arrays[first:], self._strides(first))
            flat = [np.asarray(found[source]).reshape(_BATCH, -1) for source in self._feeding(first)]
            parts.append(np.hstack(flat)[: len(some)].astype(np.float64))
        return np.concatenate(parts)

    def export(self, layers: int | None = None, shape: tuple[int, int] = (32, 32)) -> ImplicitModel:
        """The last `layers` layers and the classifier as an implicit model in CSR, exact in float64.

        Args:
          layers: as in `states`.
          shape: height and width of the images, each a multiple of 4.

        Raises:
          ValueError: layers or shape that do not fit, weights that are not finite.
        """
        first = self._first(layers)
        _check_shape(shape)
        chosen = self._chosen(first)[::-1]  # last first, as states are stacked
        feeding = self._feeding(first)
        size = {k: int(np.prod(self._shape(k, shape))) for k in (*chosen, *feeding)}

        def stacked(columns: list[int]) -> sp.csr_array:
            rows = []
            for layer in chosen:
                maps = self._maps(layer, shape)
                blocks = [maps.get(column, sp.csr_array((size[layer], size[column]))) for column in columns]
                rows.append(sp.hstack(blocks, format="csr"))
            return sp.csr_array(sp.vstack(rows))

        height, width, channels = self._shape(self.depth - 1, shape)
        W = _host(self.classifier.kernel).T
        pooled = sp.kron(np.full((1, height * width), 1.0 / (height * width)), W, format="csr")
        n, p = sum(size[k] for k in chosen), sum(size[k] for k in feeding)
        biases = [np.tile(self._folded(k)[1], int(np.prod(self._shape(k, shape)[:2]))) for k in chosen]
        rest = n - height * width * channels
        return ImplicitModel(
            A=stacked(chosen),
            B=stacked(feeding),
            C=sp.hstack([pooled, sp.csr_array((self.classes, rest))]) if rest else pooled,
            D=sp.csr_array((self.classes, p)),
            activation="relu",
            b=np.concatenate(biases),
            c=_host(self.classifier.bias),
        )

    def parameters_of(self, layers: int | None = None) -> int:
        """Weights and biases of the last `layers` layers and the classifier, normalisation folded in."""
        folded = (self._folded(layer) for layer in self._chosen(self._first(layers)))
        head = (self.classifier.in_features + 1) * self.classifier.out_features
        return int(head + sum(kernel.size + bias.size for kernel, bias in folded))

    def _first(self, layers: int | None) -> int:
        """The first of the last `layers` layers."""
        layers = self.depth if layers is None else positive_integer("layers", layers)
        if layers > self.depth:
            raise ValueError(f"layers must be in 1 … {self.depth}, got {layers}.")
        return self.depth - layers

    def _chosen(self, first: int) -> list[int]:
        return list(range(first, self.depth))

    def _feeding(self, first: int) -> list[int]:
        """The layers before `first` whose activations enter it or a later one; −1 are the pixels."""
        return [first - 1, first - 2] if _has_shortcut(first) else [first - 1]

    def _shape(self, layer: int, shape: tuple[int, int]) -> Shape:
        """Of the layer's activations."""
        if layer < 0:
            return (*shape, 3)
        stage = self._stage(layer)
        return shape[0] >> stage, shape[1] >> stage, self.width << stage

    def _slices(self, first: int, shape: tuple[int, int]) -> list[slice]:
        """Where each layer's states lie, last layer first."""
        ends = np.cumsum([int(np.prod(self._shape(k, shape))) for k in self._chosen(first)[::-1]]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends)]

    def _folded(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (3, 3, inputs, outputs) and bias of a layer with its normalisation folded in, float64."""
        norm = self.norms[layer]
        mean, variance, scale, bias = (_host(v) for v in (norm.mean, norm.var, norm.scale, norm.bias))
        factor = scale / np.sqrt(variance + norm.epsilon)
        return _host(self.convolutions[layer].kernel) * factor, bias - mean * factor

    def _maps(self, layer: int, shape: tuple[int, int]) -> dict[int, sp.csr_array]:
        """The matrices by which a layer reads earlier ones."""
        received, stride = self._shape(layer - 1, shape), self._stride(layer)
        maps = {layer - 1: _convolution_matrix(self._folded(layer)[0], received, stride)}
        if _has_shortcut(layer):
            given, wanted = self._shape(layer - 2, shape), self._shape(layer, shape)
            maps[layer - 2] = _shortcut_matrix(given, wanted)
        return maps

    def _strides(self, first: int) -> tuple[int, ...]:
        return tuple(self._stride(layer) for layer in range(first))

    def _checked_images(self, images: Any) -> np.ndarray:
        array = float_array("images", images)
        if array.ndim != 4 or array.shape[3] != 3 or len(array) == 0:
            raise ValueError(f"images must be (m, height, width, 3) with m >= 1, got shape {array.shape}.")
        _check_shape(array.shape[1:3])
        return array

    # ---- files ---------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], overwrite: bool = False) -> None:
        """Writes weights and running statistics to `path` as safetensors, the sizes in its JSON header.

        Raises:
          FileExistsError: `path` exists and `overwrite` is False.
          FileNotFoundError: its folder does not exist.
        """
        header = {
            "sizes": json.dumps([self.blocks, self.width, self.classes]),
        }
        tensors = {name: np.asarray(variable[...]) for name, variable in self._variables()}
        write_safetensors(path, tensors, header, marker=FORMAT, version=FORMAT_VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ResNet:
        """Reads a network that `save` wrote, in evaluation mode.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is truncated, foreign, of a newer format version or inconsistent; says which.
        """
        tensors, header = read_safetensors(path, FORMAT, FORMAT_VERSION)
        with usable(path, "simjax network"):
            network = cls(*json.loads(header["sizes"]))
            for name, variable in network._variables():
                if tensors[name].shape != variable.shape:
                    raise ValueError(f"{name} has shape {tensors[name].shape}, its sizes say {variable.shape}")
                variable[...] = jnp.asarray(tensors[name])
        network.eval()
        return network

    def _variables(self) -> Iterator[tuple[str, Any]]:
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            yield f"layers.{layer}.kernel", convolution.kernel
            for name in ("scale", "bias", "mean", "var"):
                yield f"layers.{layer}.{name}", getattr(norm, name)
        yield "classifier.kernel", self.classifier.kernel
        yield "classifier.bias", self.classifier.bias


@partial(jax.jit, static_argnames="strides")
def _activations(
    images: jax.Array, kernels: list[jax.Array], biases: list[jax.Array], strides: tuple[int, ...]
) -> dict[int, jax.Array]:
    """Of the first layers, by number, with −1 for the images."""
    found = {-1: images}
    for layer, (kernel, bias, stride) in enumerate(zip(kernels, biases, strides)):
        z = bias + jax.lax.conv_general_dilated(
            found[layer - 1], kernel, (stride, stride), _PADDING,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        if _has_shortcut(layer):
            z = z + _shortcut(found[layer - 2], z.shape)
        found[layer] = jax.nn.relu(z)
    return found


def _host(variable: Any) -> np.ndarray:
    """A Flax variable's value in float64."""
    return np.asarray(variable[...], np.float64)


def _has_shortcut(layer: int) -> bool:
    """Whether the layer is the second of a block, to which the block's input is added."""
    return layer > 0 and layer % 2 == 0


def _shortcut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x itself, or every second pixel with zeros for the channels that `shape` has more."""
    if x.shape == shape:
        return x
    return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, shape[3] - x.shape[3])))


def _shortcut_matrix(given: Shape, wanted: Shape) -> sp.csr_array:
    """`_shortcut` on flattened activations, (wanted, given)."""
    stride = given[0] // wanted[0]
    down, right = (_shift(given[axis], stride, 0) for axis in (0, 1))
    return sp.csr_array(sp.kron(sp.kron(down, right), sp.eye_array(wanted[2], given[2]), format="csr"))


def _convolution_matrix(kernel: np.ndarray, received: Shape, stride: int) -> sp.csr_array:
    """The 3×3 convolution with padding 1 on flattened activations, (outputs, inputs)."""
    height, width, _ = received
    parts = [
        sp.kron(sp.kron(_shift(height, stride, a - 1), _shift(width, stride, b - 1)), kernel[a, b].T, format="csr")
        for a in range(3)
        for b in range(3)
    ]
    return sp.csr_array(sum(parts[1:], parts[0]))


def _shift(size: int, stride: int, offset: int) -> sp.csr_array:
    """Row y picks entry stride·y + offset of `size`, or nothing outside."""
    rows = np.arange(size // stride)
    columns = stride * rows + offset
    inside = (columns >= 0) & (columns < size)
    entries = (np.ones(inside.sum()), (rows[inside], columns[inside]))
    return sp.csr_array(entries, shape=(rows.size, size))


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or any(side < 4 or side % 4 for side in shape):
        raise ValueError(f"images must have height and width that are multiples of 4, got {tuple(shape)}.")
