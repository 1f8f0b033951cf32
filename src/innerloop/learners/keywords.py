"""Settings as dataclasses whose fields are keyword arguments of every learner that has them: each is written once."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any


def flattened(init: Callable[..., None]) -> Callable[..., None]:
    """Make a constructor take the fields of its settings as keyword arguments of its own.

    Settings are keyword-only parameters that are annotated with a dataclass and have an instance of it as default:

        @flattened
        def __init__(self, net, loss, metrics=None, *, inner: InnerLoop = InnerLoop(), **outer): ...

    is called as `MAML(net, loss, inner_lr=0.1)`, and its signature lists inner_lr and the other fields with the
    defaults of that instance. The instance itself may be passed as well: `MAML(net, loss, inner=InnerLoop(0.1))`.
    """
    signature = inspect.signature(init, eval_str=True)
    settings = {name: p for name, p in signature.parameters.items() if is_dataclass(p.annotation)}

    @functools.wraps(init)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        for name, parameter in settings.items():
            known = [f.name for f in fields(parameter.annotation)]
            changes = {key: kwargs.pop(key) for key in known if key in kwargs}
            kwargs[name] = replace(kwargs.get(name, parameter.default), **changes)
        init(*args, **kwargs)

    flat: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in settings:
            flat += [
                inspect.Parameter(f.name, parameter.kind, default=getattr(parameter.default, f.name), annotation=f.type)
                for f in fields(parameter.annotation)
            ]
        else:
            flat.append(parameter)
    wrapper.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    return wrapper
