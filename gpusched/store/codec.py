"""Turns frozen dataclasses into JSON objects and back, fast: for each class the code is written once, at import.

The generated functions look as if written by hand (`if v.hold is not None: d["hold"] = encode_Hold(v.hold)`).
Two rules make rows last longer than versions:

- A value is left out only if it is empty (None, False, 0, "", ()) and that is the field's default. Everything else
  is written, so that a default that changes later does not change jobs of today.
- Reading takes the default for what is missing and ignores what it does not know.

It must not know jobs or SQL; rows.py says what is kept where.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

Memo = dict[Any, Any]  # equal strings and values seen while reading; keeps one of each
Encode = Callable[[Any], dict[str, Any]]
Decode = Callable[[dict[str, Any], Memo], Any]

_CODECS: dict[type, tuple[Encode, Decode]] = {}


def codec(cls: type, skip: tuple[str, ...] = (), shared: frozenset[type] = frozenset()) -> tuple[Encode, Decode]:
    """The encoder and decoder of a dataclass.

    skip: fields kept elsewhere; the decoder takes their values from the object's key of the same name as they are.
    shared: classes of which equal values become one object when read with the same memo (they must be hashable).
    """
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    scope: dict[str, Any] = {"cls": cls}
    encode, arguments = ["def encode(o):", " d = {}"], []
    for field in fields:
        if field.name in skip:
            arguments.append(f"d[{field.name!r}]")
            continue
        kind, optional = _without_none(hints[field.name])
        encode += _encode_lines(field, _encoded(kind, "v", scope, shared), optional)
        arguments.append(_argument(field, kind, optional, scope, shared))
    made = f"cls({', '.join(arguments)})"
    if cls in shared:
        made = f"share(made := {made}, made)"
    decode = ["def decode(d, memo):", " get = d.get", " share = memo.setdefault", f" return {made}"]
    exec("\n".join([*encode, " return d", *decode]), scope)  # the text comes from our own classes only
    return scope["encode"], scope["decode"]


def _nested(cls: type, shared: frozenset[type]) -> tuple[Encode, Decode]:
    if cls not in _CODECS:
        _CODECS[cls] = codec(cls, shared=shared)
    return _CODECS[cls]


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"a stored field is one type or None, not {hint}")
        return inner[0], True
    return hint, False


def _encoded(kind: Any, value: str, scope: dict[str, Any], shared: frozenset[type]) -> str:
    """An expression that makes JSON of `value`."""
    if typing.get_origin(kind) is tuple:
        item = _encoded(typing.get_args(kind)[0], "i", scope, shared)
        return value if item == "i" else f"[{item} for i in {value}]"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = f"encode_{kind.__name__}"
        scope[name] = _nested(kind, shared)[0]
        return f"{name}({value})"
    return value  # numbers, text, string enums and plain JSON


def _encode_lines(field: dataclasses.Field[Any], made: str, optional: bool) -> list[str]:
    key, default = repr(field.name), field.default
    lines = [f" v = o.{field.name}"]
    if field.default_factory is not dataclasses.MISSING:
        if dataclasses.is_dataclass(empty := field.default_factory()) and not isinstance(empty, type):
            empty = _CODECS[type(empty)][0](empty)
        return [*lines, f" v = {made}", f" if v: d[{key}] = v" if not empty else f" d[{key}] = v"]
    if optional and default is None:
        return [*lines, f" if v is not None: d[{key}] = {made}"]
    if optional:  # no default, or one that is not None: write the None too
        return [*lines, f" d[{key}] = None if v is None else {made}"]
    if default is not dataclasses.MISSING and not default:
        return [*lines, f" if v: d[{key}] = {made}"]
    return [*lines, f" d[{key}] = {made}"]


def _decoded(kind: Any, value: str, scope: dict[str, Any], shared: frozenset[type]) -> str:
    """An expression that makes the field's value of the JSON in `value`."""
    if kind is str:
        return f"share({value}, {value})"
    if typing.get_origin(kind) is tuple:
        item = _decoded(typing.get_args(kind)[0], "i", scope, shared)
        return f"tuple({value})" if item == "i" else f"tuple([{item} for i in {value}])"
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple of plain values: a list in JSON
        scope[f"make_{kind.__name__}"] = kind._make  # type: ignore[attr-defined]
        return f"make_{kind.__name__}({value})"
    if isinstance(kind, type) and issubclass(kind, Enum):
        scope[f"member_{kind.__name__}"] = {member.value: member for member in kind}
        return f"member_{kind.__name__}[{value}]"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        scope[f"decode_{kind.__name__}"] = _nested(kind, shared)[1]
        return f"decode_{kind.__name__}({value}, memo)"
    return value


def _argument(
    field: dataclasses.Field[Any], kind: Any, optional: bool, scope: dict[str, Any], shared: frozenset[type]
) -> str:
    """The constructor's argument for one field."""
    key, var = repr(field.name), f"v_{field.name}"
    made = _decoded(kind, var, scope, shared)
    if field.default_factory is not dataclasses.MISSING:
        scope[f"new_{field.name}"] = field.default_factory
        return f"({made} if ({var} := get({key})) is not None else new_{field.name}())"
    if field.default is dataclasses.MISSING:
        read = f"({var} := d[{key}])"
        return f"(None if {read} is None else {made})" if optional else f"({read}, {made})[1]"
    scope[f"default_{field.name}"] = field.default
    if optional:
        if field.default is None:
            return f"({made} if ({var} := get({key})) is not None else None)"
        return f"(None if ({var} := get({key}, default_{field.name})) is None else {made})"
    if made == var:
        return f"get({key}, default_{field.name})"
    return f"({made} if ({var} := get({key})) is not None else default_{field.name})"
