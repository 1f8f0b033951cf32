"""Checks of a configuration's nodes against the signatures that they fill. Light: no torch here."""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from innerloop.errors import InputError

PRIMITIVES = (int, float, str, bool, type(None))


OURS = ("innerloop", "lightning.pytorch.callbacks")
"""Modules whose classes a configuration may name without being allowed by the user."""


def locate(path: str, key: str, allow: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the class or function at a dotted path, which must be below `OURS` or a module of `allow`.

    A configuration may be somebody else's, and importing a module runs its code. So what is not allowed is not
    imported. Raises InputError that names the key if the path is not allowed or leads nowhere.
    """
    allowed = (*OURS, *allow)
    if not _is_below(path, allowed):
        package = str(path).partition(".")[0]
        raise InputError(
            f"{key}={path}: classes of {package} are not allowed in a configuration. If you trust them, and the "
            f"configuration if it is not yours, add allow=[{package}]"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}={path}: there is no such class or function ({error})") from error
    # Modules below `OURS` import others, such as os, whose functions are not meant.
    if not callable(found) or not _is_below(f"{getattr(found, '__module__', '')}.", allowed):
        raise InputError(f"{key}={path}: there is no such class or function")
    return found


def _is_below(path: Any, modules: Sequence[str]) -> bool:
    return isinstance(path, str) and any(path.startswith(f"{module}.") for module in modules)


def target_of(node: Any, key: str, kind: type, allow: Sequence[str] = ()) -> type:
    """Return the class that a node's `_target_` names.

    kind: its base class. allow: see `locate`. Raises InputError if it names none, or one of another kind.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise InputError(f"{key} must be a configuration with a _target_, got {node}")
    found = locate(node["_target_"], f"{key}._target_", allow)
    if not (inspect.isclass(found) and issubclass(found, kind)):
        raise InputError(f"{key}._target_={node['_target_']} is no {kind.__name__}")
    return found


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (type, default) of every keyword argument of a class or function.

    Where a constructor takes **kwargs, those of its base class are included, and so on.
    """
    found: dict[str, tuple[Any, Any]] = {}
    functions: list[Any] = [vars(c).get("__init__") for c in target.__mro__] if inspect.isclass(target) else [target]
    for function in filter(None, functions):
        signature = _signature(function)
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, (parameter.annotation, parameter.default))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return found


def arguments(node: Mapping[str, Any], target: Callable[..., Any], key: str) -> dict[str, Any]:
    """Return the node's values, converted to the types in the target's signature.

    Raises InputError that names the key and what is possible, for an unknown name and for a value of the wrong type.
    """
    return converted(node, {name: kind for name, (kind, _) in parameters(target).items()}, key)


def converted(node: Mapping[str, Any], known: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the node's values, converted to the known types (name -> type). Raises InputError: see `arguments`."""
    for name in node:
        if name not in known:
            raise InputError(unknown_key(f"{key}.{name}", known))
    schema = OmegaConf.structured(
        make_dataclass("Arguments", [(name, _for_omegaconf(known[name]), field(default=MISSING)) for name in node])
    )
    for name, value in node.items():
        try:
            schema[name] = value
        except OmegaConfBaseException as error:
            raise InputError(f"{key}.{name}={value}: {str(error).splitlines()[0]}") from error
    missing = [name for name in node if OmegaConf.is_missing(schema, name)]
    if missing:
        raise InputError(f"{key}.{missing[0]} must be given")
    return typing.cast(dict[str, Any], OmegaConf.to_container(schema, resolve=True))


def make(node: Mapping[str, Any], key: str, kind: type, allow: Sequence[str] = (), **kwargs: Any) -> Any:
    """Return an object of the node's `_target_`, made of the node's values and of kwargs, which no configuration sets.

    kind, allow: see `target_of`.
    """
    target = target_of(node, key, kind, allow)
    values = {name: value for name, value in node.items() if name not in ("name", "_target_")}
    return target(**arguments(values, target, key), **kwargs)


def unknown_key(full_key: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the message for a key that does not exist. known: the names that are possible in its place."""
    *path, name = full_key.split(".")
    names = sorted(set(map(str, known)))
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {'.'.join([*path, close[0]])}?" if close else ""
    return f"unknown key {full_key}.{hint} Possible here: {', '.join(names)}"


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # an annotation names what is imported for type checkers only
        return inspect.signature(function)


def _for_omegaconf(hint: Any) -> Any:
    """Return the type that OmegaConf converts values to, Any for types that it does not know."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Sequence, list):
        return list[inner[0]] if inner[0] in PRIMITIVES else Any  # type: ignore[valid-type]
    if hint in PRIMITIVES or (origin in (typing.Union, types.UnionType) and all(kind in PRIMITIVES for kind in inner)):
        return hint
    return Any
