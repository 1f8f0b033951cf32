"""Checks that every key of a composed configuration is known, wherever it came from. Light: no torch here."""

import difflib
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from innerloop.errors import InputError
from innerloop.runs.signatures import unknown_key


def check_schema(cfg: DictConfig, schema: type) -> None:
    """Raise InputError for a key of a configuration that the schema's dataclass does not have, at any depth, and for
    an interpolation that gives another kind of value where the schema has keys.

    The keys of `algo`, `data`, `net` and of each callback are those of a signature, checked where they are used.
    """
    _check(_unresolved(cfg), schema, "", cfg)


def check_hydra(hydra: Any) -> None:
    """Raise InputError for an unknown key of the node `hydra` and for a recipe that does not exist.

    The recipe that follows from data and algorithm need not exist.
    """
    keys = _unresolved(hydra)
    keys.pop("env", None)  # Hydra's own files set it, and its schema lacks it
    _check(keys, HydraConf, "hydra", hydra)
    runtime = hydra.runtime
    chosen = runtime.choices.get("recipe")
    if chosen is None or chosen == f"{runtime.choices.get('data')}_{runtime.choices.get('algo')}":
        return
    folders = [Path(source.path) / "recipe" for source in runtime.config_sources if source.schema == "file"]
    known = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    if chosen not in known:
        # Recipes of other data and of other algorithms do not fit, and there are many.
        data, algo = (runtime.choices.get(group) for group in ("data", "algo"))
        fitting = [name for name in known if name.startswith(f"{data}_") or name.endswith(f"_{algo}")]
        close = difflib.get_close_matches(chosen, known, n=1)
        raise InputError(unknown_key(f"recipe/{chosen}", [*fitting, *close, "none"]))


def _unresolved(cfg: Any) -> dict[Any, Any]:
    """Return a configuration as plain containers, its interpolations as strings."""
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return plain


def _check(node: Mapping[Any, Any], schema: type, key: str, cfg: DictConfig) -> None:
    known = {f.name for f in fields(schema)}
    hints = typing.get_type_hints(schema)
    for name, value in node.items():
        full_key = f"{key}.{name}" if key else str(name)
        if name not in known:
            raise InputError(unknown_key(full_key, list(known)))
        kinds = (hints[name], *typing.get_args(hints[name]))
        inner = [kind for kind in kinds if is_dataclass(kind)]
        if inner and isinstance(value, Mapping):
            _check(value, typing.cast(type, inner[0]), full_key, cfg[name])
        keyed = bool(inner) or typing.get_origin(hints[name]) is dict
        # Hydra does not check the type of what is interpolated.
        if keyed and isinstance(value, str) and not isinstance(cfg[name], DictConfig):
            raise InputError(f"{full_key} must have keys, got {value}, which is {cfg[name]}")
