"""The file `adapted.pt`: an adapted model as tensors and plain containers, which are data and no code."""

import io
import math
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from innerloop.backbones import Standard
from innerloop.datasets.files import opened
from innerloop.devices.files import user_path
from innerloop.episodes import weights_of, with_weights
from innerloop.errors import InputError
from innerloop.learners.simple_cnaps import with_quadratic_head
from innerloop.practice.adapted import Adapted
from innerloop.practice.describe import noun_of
from innerloop.practice.embedding import restored
from innerloop.practice.heads import Identity, Novelty, VectorModel
from innerloop.practice.learned import NetModel
from innerloop.practice.tables import TableForm
from innerloop.practice.twins import SIDE
from innerloop.runs.signatures import make

MODEL = "adapted.pt"
FORMAT = 1
"""Raise it when the content of the file changes, so that another version refuses it instead of misreading it."""


def model_bytes(adapted: Adapted) -> bytes:
    """Return the content of the file of a model."""
    content = {
        "format": FORMAT,
        "innerloop": _version(),
        "classes": adapted.classes,
        "temperature": adapted.temperature,
        "threshold": adapted.threshold,
        "seen": sorted(digest.hex() for digest in adapted.seen),
        "prints": adapted.prints,
        "about": adapted.about,
        "embedding": adapted.embedding.state(),
        "model": _state(adapted),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(path: "Path | str", *, batch_size: int = 16, allow: Sequence[str] = ()) -> Adapted:
    """Return the model of a file adapted.pt, or of the folder that it is in. Nothing in the file is run as code.

    batch_size: pictures that a backbone sees at once. allow: packages besides innerloop that the net's class may be
    from: see `innerloop.load`.
    Raises InputError if it is missing, broken or of another version, or its backbone is another one today.
    """
    path = user_path(path)
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path}: there is no adapted model (a file {MODEL}, or the folder that it is in)")
    with opened(file) as stored:
        data = stored.read()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise InputError(f"{damaged} has another checksum")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = content["format"]
    except Exception as error:  # torch raises nearly anything for damaged bytes
        raise InputError(f"{file} is no adapted model, or is damaged: {_first_line(error)}") from error
    if found != FORMAT:
        raise InputError(
            f"{file} was written by another version of innerloop ({content.get('innerloop')}, format {found}; this one "
            f"reads format {FORMAT}): adapt again"
        )
    try:
        return _adapted(content, batch_size, allow)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{file} is no whole adapted model: {type(error).__name__}: {_first_line(error)}") from error


def _adapted(content: dict[str, Any], batch_size: int, allow: Sequence[str]) -> Adapted:
    """Return the model of a file's content. Raises any of many errors for what is none."""
    state, classes = content["model"], [str(name) for name in content["classes"]]
    numbers = [float(content["temperature"]), float(1.0 if content["threshold"] is None else content["threshold"])]
    if len(set(classes)) < max(len(classes), 2) or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise InputError(
            "the adapted model has no two classes, or its temperature or threshold is no number above zero"
        )
    model = _net_model(state, allow) if "net" in state else _vector_model(state)
    heads = model.classes if isinstance(model, NetModel) else len(model.weight)
    tensors = [w for w in tree_leaves(state) if isinstance(w, Tensor)]
    if heads != len(classes) or not all(torch.isfinite(w).all() for w in tensors):
        raise InputError(
            f"the adapted model has {heads} outputs for {len(classes)} classes, or values that are no numbers"
        )
    _check_about(content["about"], classes)
    form = TableForm.restored(content["embedding"]) if "columns" in content["embedding"] else None
    inputs = model.input_shape[0] if isinstance(model, NetModel) else model.weight.shape[1]
    if form is not None and inputs != sum(len(column.mean) for column in form.columns):
        raise InputError(f"the adapted model reads {inputs} numbers, and its columns become others")
    return Adapted(
        classes=classes,
        embedding=form or restored(content["embedding"], batch_size, allow),
        model=model,
        temperature=numbers[0],
        threshold=None if content["threshold"] is None else numbers[1],
        seen=frozenset(map(bytes.fromhex, content["seen"])),
        about=content["about"],
        net=state.get("net"),
        prints=_prints(content.get("prints", torch.empty(0, SIDE, SIDE))),
    )


def _prints(prints: Tensor) -> Tensor:
    """Return the prints of a file. Raises InputError for what is none. Files of earlier versions have none."""
    if prints.shape[1:] != (SIDE, SIDE) or not torch.isfinite(prints).all():
        raise InputError("the prints of labelled pictures of the adapted model are not what an adaptation writes")
    return prints


def _check_about(about: dict[str, Any], classes: list[str]) -> None:
    """Raise InputError unless what a report shows of a model has the types that it writes them with.

    The model may be a stranger's, and the report is a page that a browser opens.
    """
    support, validation = about["support"], about.get("validation")
    shares = [] if validation is None else [validation, *about["baselines"].values()]
    texts = [about["method"], about["features"], *about["remarks"], *about["warnings"]]
    texts += [about[name] for name in ("run", "algo", "label") if about.get(name) is not None]
    counts = [support["pictures"], support["skipped"], *support["classes"].values()]
    if validation is not None:
        texts.append(validation["left_out"])
        counts.append(validation["pictures"])
    if noun_of(about) not in ("picture", "row"):
        raise InputError("what the adapted model says of itself is not what an adaptation writes")
    numbers = [n for share in shares for n in (share["accuracy"], *share["interval"])]
    numbers += [] if validation is None else [validation["calibration_error"], *validation["candidates"].values()]
    if (
        set(support["classes"]) != set(classes)
        or not all(isinstance(value, str) for value in texts)
        or not all(isinstance(value, int) for value in counts)
        or not all(isinstance(value, float | int) for value in numbers)
        or not all(len(share["interval"]) == 2 for share in shares)
    ):
        raise InputError("what the adapted model says of itself is not what an adaptation writes")


def _state(adapted: Adapted) -> dict[str, Any]:
    model = adapted.model
    if isinstance(model, VectorModel):
        return {
            "form": _form_state(model.form),
            "weight": model.weight,
            "bias": model.bias,
            "novelty": _novelty_state(model.novelty),
        }
    assert isinstance(model, NetModel)
    assert model.novelty is not None
    weights = {name: w.detach() for name, w in weights_of(model.net).items()}
    return {
        "net": adapted.net,
        "input_shape": list(model.input_shape),
        "outputs": model.outputs,
        "weights": weights,
        "statistics": {name: list(moments) for name, moments in model.statistics.items()},
        "classes": model.classes,
        "novelty": _novelty_state(model.novelty),
    }


def _form_state(form: Standard) -> list[Tensor | None] | None:
    return None if isinstance(form, Identity) else list(form)


def _form(state: list[Tensor | None] | None, like: Tensor) -> Standard:
    return Identity(torch.zeros(like.shape[1], dtype=like.dtype)) if state is None else Standard(*state)  # type: ignore[arg-type]


def _novelty_state(novelty: Novelty) -> dict[str, Any]:
    return {"form": _form_state(novelty.form), "means": novelty.means}


def _novelty(state: dict[str, Any]) -> Novelty:
    return Novelty(_form(state["form"], state["means"]), state["means"])


def _vector_model(state: dict[str, Any]) -> VectorModel:
    return VectorModel(
        _form(state["form"], state["weight"]), state["weight"], state["bias"], _novelty(state["novelty"])
    )


def _net_model(state: dict[str, Any], allow: Sequence[str]) -> NetModel:
    shape = tuple(state["input_shape"])
    net: nn.Module = make(state["net"], "net", nn.Module, allow, input_shape=shape, output_size=state["outputs"])
    factors = state["weights"].get("head.factors")
    if factors is not None:
        net = with_quadratic_head(net)
    expected = {name: w.shape for name, w in weights_of(net).items()}
    if factors is not None:  # as many rows as an adaptation writes, or none
        classes, _, size = expected["head.factors"]
        expected["head.factors"] = torch.Size((classes, size if factors.numel() else 0, size))
    if {name: w.shape for name, w in state["weights"].items()} != expected:
        raise InputError("the model's weights do not fit its net")
    net.eval().requires_grad_(False)
    statistics = {name: (mean, variance) for name, (mean, variance) in state["statistics"].items()}
    return NetModel(
        with_weights(net, state["weights"]),
        statistics,
        shape,
        state["outputs"],
        state["classes"],
        _novelty(state["novelty"]),
    )


def _version() -> str | None:
    try:
        return version("innerloop")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:200] or type(error).__name__
