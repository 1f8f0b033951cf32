"""The sources of a mixture: composed from the files in conf/data, and the settings that all of them share.

Light: no torch here.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from innerloop.errors import InputError
from innerloop.runs.signatures import unknown_key

OF_MIXTURE = ("name", "_target_", "weights", "leave_out", "overlap")
"""Keys of a mixture's `data` that are its own. Others, such as shots, are settings of all its sources."""
OF_SOURCES = ("sources", "of", "root", "roots", "size", "channels")
"""Keys that say what the sources are, where their files are, and the size and mode of all pictures."""
OF_RUN = ("meta_batch_size", "num_workers", "test_episodes")
"""Keys that a run has once, whatever its sources say."""


def compose_sources(cfg: DictConfig) -> None:
    """Replace names in `data.sources` by the configurations of these names in conf/data.

    An entry is a name, or a mapping of one name to overrides, in which `data` names another file than that of the name:
    [omniglot, {leaves: {data: folder, root: FOLDER}}]. The overrides are kept apart, as `own`: see `source_nodes`.
    Sources that are composed already are left as they are.

    Raises InputError for a source that does not exist or occurs twice.
    """
    data = cfg.get("data")
    if not isinstance(data, DictConfig) or not isinstance(data.get("sources"), ListConfig):
        return
    found: dict[str, Any] = {}
    for entry in list(OmegaConf.to_object(data.sources)):  # type: ignore[arg-type]
        name, own = _entry(entry)
        if name in found:
            raise InputError(f"data.sources: {name} is there twice: give one another name, {{NAME: {{data: {name}}}}}")
        own = dict(own)
        file = own.pop("data", None) or data.get("of") or name
        node = {k: v for k, v in _file(str(file)).items() if k not in (*OF_RUN, "name")}
        if "sources" in node:
            raise InputError(f"data.sources: {file} is a mixture itself: name its sources instead")
        for key in own:
            if key not in node:
                raise InputError(unknown_key(f"data.sources.{name}.{key}", ["data", *node]))
        found[name] = node | ({"own": own} if own else {})
    with open_dict(cfg):
        cfg.data.sources = found


def _entry(entry: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, own),) = entry.items()
        if isinstance(own, Mapping):
            return str(name), own
    raise InputError(f"data.sources: {entry} is no name and no name with its settings, as {{leaves: {{root: FOLDER}}}}")


def _file(name: str) -> dict[str, Any]:
    """Return the content of conf/data/NAME.yaml, composed by Hydra, in plain containers."""
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        raise InputError("data.sources has names, which only a Hydra application can look up: give configurations")
    known = sorted(hydra.config_loader().get_group_options("data"))
    if name not in known:
        raise InputError(unknown_key(f"data.sources.{name}", known).replace("unknown key", "there is no source", 1))
    node = OmegaConf.to_container(compose(None, ["+net=mlp", f"+data={name}"]).data, resolve=True)
    assert isinstance(node, dict)
    return node  # type: ignore[return-value]


def source_nodes(node: Mapping[str, Any], keys_of: Callable[[dict[str, Any]], set[str]]) -> dict[str, dict[str, Any]]:
    """Return the whole `data` node of each source.

    A value is the source's override, else the mixture's, unless that is null, else that of the source's file.

    keys_of: returns the keys that a source's node may have. Raises InputError for a key of the mixture that is none of
    any source, and for roots of unknown sources.
    """
    sources, roots = node.get("sources"), node.get("roots") or {}
    if not isinstance(sources, Mapping) or not sources:
        raise InputError(f"data.sources={sources}: name at least one source, as [omniglot,glyphs]")
    if "root" in node and node["root"] is None:
        folders = ", ".join(sources)
        raise InputError(f"data={node.get('name')} needs data.root=FOLDER, with a folder for each source: {folders}")
    if node.get("standardize"):
        raise InputError("standardize is by the training classes of one data set, and a mixture has several: leave it")
    size, channels = node.get("size"), node.get("channels")
    if size is not None and (type(size) is not int or not 1 <= size <= 4096 or channels not in (1, 3)):
        raise InputError(f"data.size={size} and data.channels={channels}: sizes are 1 to 4096, channels 1 or 3")
    for name, root in roots.items():
        if root is not None and name not in sources:
            raise InputError(f"data.roots.{name}: there is no such source; there are {', '.join(sources)}")
    apart = (*OF_MIXTURE, *OF_RUN, "sources", "of", "root", "roots")
    shared = {k: v for k, v in node.items() if k not in apart}
    used, found = set[str]({"size", "channels"}), {}
    for name, own in sources.items():
        file = {k: v for k, v in own.items() if k != "own"}
        with of_source(name):
            known = keys_of(file)
        used |= known
        common = {k: v for k, v in shared.items() if k in known and v is not None}
        found[name] = file | common | dict(own.get("own") or {})
        if root := roots.get(name):
            found[name]["root"] = root
        elif node.get("root"):
            found[name]["root"] = os.path.join(str(node["root"]), name)
    for key in shared:
        if key not in used:
            raise InputError(unknown_key(f"data.{key}", sorted({*used, *OF_MIXTURE, *OF_SOURCES, *OF_RUN})))
    return found


def mixture_values(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a mixture's `data` node that are its own."""
    return {k: v for k, v in node.items() if k in OF_MIXTURE}


@contextmanager
def of_source(name: str) -> Iterator[None]:
    """Name the source in an InputError that is raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"source {name}: {error}") from error
