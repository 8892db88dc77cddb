"""What a training script holds beside its Run, for the trace of a rehearsal: the usual reason why a resume differs.

Two kinds of things in the functions that are running now, found by walking up the stack:

    objects   generators, optimizers, schedulers, metrics that are not registered (see state/unregistered.py)
    plain     numbers, texts and lists in variables and in attributes of the user's own objects: a running sum, the best
              score so far, a counter of one's own, which all begin anew after a stop

Looks only, calls nothing of what it finds but state_dict(). Not for training itself: it costs time at every point.
"""

import os
import sys
import sysconfig
from typing import Any, Dict, Iterator, List, Optional, Tuple

from gpusched.checkpoint.marks import mark
from gpusched.checkpoint.state import unregistered

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (bool, int, float, complex, str)
_LONGEST = 100000  # items of a list that are still looked at
_MOST = 400  # variables of one function


def frames() -> List[Any]:
    """The frames of the user's own code, innermost first."""
    found = []
    frame: Optional[Any] = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename) if frame.f_code.co_filename[:1] != "<" else "<"
        if path != "<" and not path.startswith(_OURS) and not path.startswith(_LIBRARIES):
            found.append(frame)
        frame = frame.f_back
    return found


def places(stack: List[Any]) -> List[List[Any]]:
    """[file, line, function] of each frame, innermost first."""
    return [[os.path.abspath(one.f_code.co_filename), one.f_lineno, one.f_code.co_name] for one in stack[:6]]


class Surroundings:
    """Remembers the objects it found in an epoch, so that it searches once and marks often."""

    def __init__(self) -> None:
        self._objects: List[Tuple[str, Any, str]] = []
        self._searched: Any = None

    def objects(self, when: Any, stack: List[Any], registered: List[Any], run: Any) -> Dict[str, List[str]]:
        """name → [kind, mark] of what is not registered; looked for again whenever `when` changes."""
        if when != self._searched:
            self._searched, self._objects = when, list(_search(stack, registered, run))
        return {name: [kind, mark(_state(one))] for name, one, kind in self._objects}


def _search(stack: List[Any], registered: List[Any], run: Any) -> Iterator[Tuple[str, Any, str]]:
    seen = set()
    for frame in stack:
        for name, one, kind in unregistered.objects(frame, registered, [run]):
            if id(one) not in seen:
                seen.add(id(one))
                yield _named(frame, name), one, kind


def _state(one: Any) -> Any:
    try:
        if hasattr(one, "_defaults") and hasattr(one, "_update_count"):  # torchmetrics: its state_dict is empty
            return [one._update_count, {name: getattr(one, name, None) for name in one._defaults}]
        return one.state_dict() if hasattr(one, "state_dict") else one
    except Exception:  # an object of the user's own that is not ready for it
        return None


def plain(stack: List[Any]) -> Dict[str, str]:
    """name → value (if it is short) or mark, of variables in the functions that run now, and of attributes of objects
    whose class is the user's own."""
    found: Dict[str, str] = {}
    for frame in stack:
        for name, value in list(frame.f_locals.items())[:_MOST]:
            if name.startswith("__"):
                continue
            if _is_plain(value):
                found.setdefault(_named(frame, name), _shown(value))
            elif _is_users(type(value)):
                for inner, attribute in list(getattr(value, "__dict__", {}).items())[:_MOST]:
                    if _is_plain(attribute):
                        found.setdefault(_named(frame, "%s.%s" % (name, inner)), _shown(attribute))
    return found


def _is_users(kind: Any) -> bool:
    """Whether a class is from the script or a module of the user's, not from a library."""
    if kind not in _classes:
        module = sys.modules.get(str(getattr(kind, "__module__", "")))
        path = getattr(module, "__file__", None) or ""
        inside = path.startswith(_LIBRARIES) or path.startswith(_OURS)
        _classes[kind] = kind.__module__ == "__main__" or (bool(path) and not inside)
    return _classes[kind]


_classes: Dict[Any, bool] = {}


def _shown(value: Any) -> str:
    text = repr(value) if type(value) in _PLAIN else ""
    return text if 0 < len(text) <= 24 else "#" + mark(value)


def _is_plain(value: Any, depth: int = 2) -> bool:
    if type(value) in _PLAIN:
        return True
    if type(value) in (list, tuple) and depth and len(value) <= _LONGEST:
        return all(_is_plain(item, depth - 1) for item in [*value[:2], *value[-2:]])
    if type(value) is dict and depth and len(value) <= 200:
        return all(type(key) is str and _is_plain(item, depth - 1) for key, item in value.items())
    return False


def _named(frame: Any, name: str) -> str:
    """`name in main()`; a variable of a script's own level is just `name`."""
    function = frame.f_code.co_name
    return name if function == "<module>" else "%s in %s()" % (name, function)
