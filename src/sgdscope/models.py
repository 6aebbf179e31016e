"""The networks of the papers, built from a name and a seed without touching the global random state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdscope.errors import ArgumentError, unknown
from sgdscope.ranges import whole

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU}
ACTIVATIONS |= {"gelu": nn.GELU, "identity": nn.Identity}
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")  # config A of Simonyan and Zisserman 2014
Inputs = tuple[int, ...]


def build(name: str, *, inputs: Sequence[int], classes: int, seed: int, **options: Any) -> nn.Module:
    """Build a network.

    Args:
        name: one of `names`.
        inputs: shape of one example: (D,), (C, H, W), or (T,) for tokens.
        classes: number of outputs; symbols of a text, at least 2.
        seed: of the first values; the same seed gives the same bits on one machine, the global generator is untouched.
        **options: of the network, see the function of its name.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        ArgumentError: an option is unknown or out of range, or the inputs do not fit the network.
        UnknownNameError: no network has that name.
    """
    if name not in _MODELS:
        error = unknown("model", name, _MODELS)
        raise error
    shape = tuple(int(n) for n in inputs)
    if not shape or min(shape) < 1:
        raise ArgumentError(f"inputs: expected the shape of one example, each size at least 1; got {shape}")
    whole("classes", classes, 2)
    function = _MODELS[name]
    accepted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    foreign = sorted(set(options) - set(accepted))
    if foreign:
        raise ArgumentError(f"{foreign[0]}: the model '{name}' has no such option; it takes {', '.join(accepted) or 'none'}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        return function(shape, classes, **options)


def names() -> list[tuple[str, str]]:
    """List the networks.

    Returns:
        (name, description) of each.
    """
    return [(name, (function.__doc__ or "").strip().split("\n", 1)[0]) for name, function in _MODELS.items()]


def catalogue() -> list[dict[str, Any]]:
    """List the networks with JSON types.

    Returns:
        ``name``, ``description`` and ``options`` (option -> default, as text) of each.
    """
    rows = []
    for name, text in names():
        parameters = inspect.signature(_MODELS[name]).parameters.values()
        own = {p.name: repr(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
        rows.append({"name": name, "description": text, "options": own})
    return rows


# --- checks ----------------------------------------------------------------------------------------------------------


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected true or false, got {value!r}")
    return value


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ArgumentError(f"{name}: expected a number 0 <= {name} < 1, got {value!r}")
    return float(value)


def _chosen(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if value not in known:
        raise ArgumentError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
    return known[value]


def _image(model: str, inputs: Inputs, side: int) -> Inputs:
    if len(inputs) != 3 or min(inputs[1:]) < side:
        raise ArgumentError(f"inputs: {model} takes images (C, H, W) of at least {side} x {side}, got {inputs}")
    return inputs


def _tokens(model: str, inputs: Inputs) -> int:
    if len(inputs) != 1:
        raise ArgumentError(f"inputs: {model} takes windows of tokens (T,), got {inputs}")
    return inputs[0]


# --- dense networks --------------------------------------------------------------------------------------------------


def logistic(inputs: Inputs, classes: int) -> nn.Module:
    """Multinomial logistic regression: one linear layer on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(inputs), classes))


def mlp(
    inputs: Inputs,
    classes: int,
    *,
    hidden: Sequence[int] = (500, 350),
    batchnorm: bool = False,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Fully connected network; the default widths are those of the MLP of Xing et al. 2018 (784-500-350-10).

    Each hidden layer is linear, BatchNorm if asked for, activation, dropout if above zero. First values are the
    framework's.

    Args:
        inputs: shape of one example; flattened.
        classes: number of outputs.
        hidden: widths of the hidden layers, each at least 1.
        batchnorm: BatchNorm after every hidden linear layer (with it in Xing et al.).
        activation: ``"relu"``, ``"tanh"``, ``"leaky_relu"`` (slope 0.01), ``"gelu"`` or ``"identity"`` (a linear network).
        dropout: share of hidden units set to zero while training, 0 <= dropout < 1.

    Returns:
        The network: [B, ...] -> logits [B, classes].

    Raises:
        ArgumentError: an option is out of range.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ArgumentError(f"hidden: expected a list of widths, got {hidden!r}")
    kind, rate, normed = _chosen("activation", activation, ACTIVATIONS), _share("dropout", dropout), _flag("batchnorm", batchnorm)
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(inputs)
    for size in hidden:
        layers.append(nn.Linear(width, whole("hidden", size, 1)))
        layers += [nn.BatchNorm1d(size)] * normed + [kind()] + [nn.Dropout(rate)] * (rate > 0)
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


# --- convolutional networks ------------------------------------------------------------------------------------------


def simplecnn(inputs: Inputs, classes: int, *, width: int = 32, dense: int = 128, kernel: int = 3) -> nn.Module:
    """SimpleCNN of Jastrzebski et al. (arXiv 1807.05031): four convolutions, two max-pools, one dense layer.

    conv k x k, w channels, same - relu - conv w, valid - relu - maxpool 2 - conv 2w, same - relu - conv 2w, valid -
    relu - maxpool 2 - dense - relu - linear; Glorot uniform weights, zero biases; no BatchNorm, no dropout. The layers are
    those of the authors' released code as recalled, not read again (361,898 parameters on 3 x 32 x 32 with 10 classes).
    `width=100, kernel=5` is close to its larger variant.

    Args:
        inputs: (C, H, W).
        classes: number of outputs.
        width: w, channels of the first pair of convolutions.
        dense: units of the dense layer.
        kernel: k, odd.

    Returns:
        The network: [B, C, H, W] -> logits [B, classes].

    Raises:
        ArgumentError: an option is out of range or the images are too small.
    """
    w, k = whole("width", width, 1), whole("kernel", kernel, 1)
    if k % 2 == 0:
        raise ArgumentError(f"kernel: expected an odd number, got {k}")
    smallest = 2 * (k + 1) + k - 1  # leaves one pixel after the second pooling
    channels, *sides = _image("simplecnn", inputs, smallest)
    rest = prod(((side - k + 1) // 2 - k + 1) // 2 for side in sides)
    layers: list[nn.Module] = []
    for size, first in ((w, channels), (2 * w, w)):
        layers += [nn.Conv2d(first, size, k, padding=k // 2), nn.ReLU(), nn.Conv2d(size, size, k), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(2 * w * rest, whole("dense", dense, 1)), nn.ReLU(), nn.Linear(dense, classes)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            _zero(layer.bias)
    return nn.Sequential(*layers)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


def _he(conv: nn.Conv2d) -> nn.Conv2d:
    """Normal weights of standard deviation sqrt(2 / (k^2 out)), zero bias."""
    nn.init.normal_(conv.weight, 0.0, sqrt(2.0 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels)))
    _zero(conv.bias)
    return conv


def vgg11(inputs: Inputs, classes: int, *, batchnorm: bool = True, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """VGG-11 (config A) as in the code of Xing et al. 2018: 3 x 3 convolutions, classifier 512-512-512-classes.

    Channels 64-M-128-M-256-256-M-512-512-M-512-512-M; convolutions start with standard deviation sqrt(2 / (9 out)) and zero
    bias, BatchNorm with gamma 1 and beta 0, linear layers as the framework does. What remains of images larger than
    32 x 32 is flattened into the classifier.

    Args:
        inputs: (C, H, W), at least 32 x 32.
        classes: number of outputs.
        batchnorm: BatchNorm after every convolution.
        width: factor of all channel numbers and of the classifier, > 0; each is rounded and at least 1.
        dropout: in front of both hidden linear layers; 0 in Xing et al.

    Returns:
        The network: [B, C, H, W] -> logits [B, classes].

    Raises:
        ArgumentError: an option is out of range or the images are too small.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 16:
        raise ArgumentError(f"width: expected a number 0 < width <= 16, got {width!r}")
    normed, rate = _flag("batchnorm", batchnorm), _share("dropout", dropout)
    channels, high, wide = _image("vgg11", inputs, 32)
    layers: list[nn.Module] = []
    for entry in VGG11:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        size = max(round(entry * width), 1)
        layers += [_he(nn.Conv2d(channels, size, 3, padding=1)), *[nn.BatchNorm2d(size)] * normed, nn.ReLU()]
        channels = size
    layers.append(nn.Flatten())
    features, dense = channels * (high // 32) * (wide // 32), max(round(512 * width), 1)
    for first in (features, dense):
        layers += [*[nn.Dropout(rate)] * (rate > 0), nn.Linear(first, dense), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dense, classes))


class Residual(nn.Module):
    """A pre-activation block: x -> shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))).

    Where shape changes, the shortcut is a 1 x 1 convolution of the activated input; else the identity.

    Args:
        channels: of the input.
        size: channels of the output.
        stride: of the first convolution.
        batchnorm: whether norm is BatchNorm; else it is nothing and convolutions have a bias.
    """

    def __init__(self, channels: int, size: int, stride: int, batchnorm: bool) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if batchnorm else nn.Identity
        bias = not batchnorm
        self.norm1, self.norm2 = norm(channels), norm(size)
        self.conv1 = _he(nn.Conv2d(channels, size, 3, stride, padding=1, bias=bias))
        self.conv2 = _he(nn.Conv2d(size, size, 3, padding=1, bias=bias))
        changes = stride != 1 or channels != size
        self.shortcut = _he(nn.Conv2d(channels, size, 1, stride, bias=bias)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, size, H / stride, W / stride]."""
        active = functional.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        moved: Tensor = kept + self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return moved


def resnet(inputs: Inputs, classes: int, *, depth: int = 56, batchnorm: bool = True, width: int = 16) -> nn.Module:
    """Pre-activation ResNet of depth 6n + 2: three stages of n blocks with w, 2w and 4w channels, global mean, linear.

    ResNet-56 (n = 9, w = 16, BatchNorm, 1 x 1 convolutions as shortcuts) is that of Xing et al. 2018. ResNet-32 without
    BatchNorm is that of Jastrzebski et al. (arXiv 1807.05031) in depth and width: as there, He's variance is divided by
    the number of blocks 3n; ours: only for the two 3 x 3 convolutions of each block, so that the signal goes through.

    Args:
        inputs: (C, H, W), at least 4 x 4.
        classes: number of outputs.
        depth: 6n + 2, at least 8.
        batchnorm: BatchNorm in front of every activation.
        width: w, channels of the first stage.

    Returns:
        The network: [B, C, H, W] -> logits [B, classes].

    Raises:
        ArgumentError: an option is out of range or the images are too small.
    """
    normed, w = _flag("batchnorm", batchnorm), whole("width", width, 1)
    n, rest = divmod(whole("depth", depth, 8) - 2, 6)
    if rest:
        raise ArgumentError(f"depth: expected 6n + 2 (8, 14, 20, 26, 32, 56, ...), got {depth}")
    channels, *_ = _image("resnet", inputs, 4)
    layers: list[nn.Module] = [_he(nn.Conv2d(channels, w, 3, padding=1, bias=not normed))]
    channels = w
    for stage in range(3):
        for number in range(n):
            block = Residual(channels, w * 2**stage, 2 if stage and not number else 1, normed)
            if not normed:
                with torch.no_grad():
                    block.conv1.weight.mul_((3 * n) ** -0.5)
                    block.conv2.weight.mul_((3 * n) ** -0.5)
            layers.append(block)
            channels = w * 2**stage
    layers += [*[nn.BatchNorm2d(channels)] * normed, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


# --- sequences -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Embedding, LSTM and a linear read-out at every position.

    Args:
        classes: symbols.
        width: of embedding and state.
        layers: of the LSTM.
        dropout: between the layers and on the read-out's input.
    """

    def __init__(self, classes: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> logits [B, T, V]."""
        logits: Tensor = self.head(self.drop(self.lstm(self.embedding(tokens))[0]))
        return logits


def lstm(inputs: Inputs, classes: int, *, width: int = 200, layers: int = 2, dropout: float = 0.0) -> nn.Module:
    """LSTM language model; the defaults (2 layers of 200) are those of Jastrzebski et al. on Penn Treebank.

    Args:
        inputs: (T,), window of tokens.
        classes: symbols V.
        width: of embedding and state.
        layers: of the LSTM.
        dropout: between the layers and in front of the read-out, 0 <= dropout < 1.

    Returns:
        The network: tokens [B, T] -> logits [B, T, V].
    """
    _tokens("lstm", inputs)
    return Recurrent(classes, whole("width", width, 1), whole("layers", layers, 1), _share("dropout", dropout))


class Attention(nn.Module):
    """A pre-norm transformer block with causal self-attention and a GELU layer of four times the width.

    Args:
        width: of the stream.
        heads: divides the width.
        dropout: on attention weights and both branches.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.drop = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(b, t, width)))
        after: Tensor = x + self.drop(self.down(functional.gelu(self.up(self.norm2(x)))))
        return after


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a last norm and a read-out of its own (not tied).

    Args:
        classes: symbols.
        context: longest window.
        width: of the stream.
        layers: blocks.
        heads: of each block.
        dropout: see `Attention`; also on the embeddings.
    """

    def __init__(self, classes: int, context: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.places, self.drop = nn.Embedding(classes, width), nn.Embedding(context, width), nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Attention(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # GPT-2: normal with 0.02, branches divided by the root of their number
                branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / sqrt(2 * layers) if branch else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> logits [B, T, V]."""
        x = self.drop(self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device)))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def gpt(inputs: Inputs, classes: int, *, width: int = 64, layers: int = 2, heads: int = 4, dropout: float = 0.0) -> nn.Module:
    """A small GPT: causal transformer with learnt positions; first values as in GPT-2.

    Args:
        inputs: (T,), the longest window of tokens.
        classes: symbols V.
        width: of the stream, a multiple of `heads`.
        layers: transformer blocks.
        heads: of each block.
        dropout: 0 <= dropout < 1.

    Returns:
        The network: tokens [B, T] -> logits [B, T, V].

    Raises:
        ArgumentError: an option is out of range.
    """
    context = _tokens("gpt", inputs)
    if whole("width", width, 1) % whole("heads", heads, 1):
        raise ArgumentError(f"width: expected a multiple of heads = {heads}, got {width}")
    return Transformer(classes, context, width, whole("layers", layers, 1), heads, _share("dropout", dropout))


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "logistic": logistic,
    "mlp": mlp,
    "simplecnn": simplecnn,
    "vgg11": vgg11,
    "resnet": resnet,
    "lstm": lstm,
    "gpt": gpt,
}
