"""The name under which an environment is kept: equal environments have the same digest, whatever their order."""

from __future__ import annotations

import hashlib
import json

from gpusched.model.job import Environment


def canonical_json(environment: Environment) -> str:
    """One text per environment: sorted names, no spaces, ASCII only (bytes that are not UTF-8 survive as escapes)."""
    return json.dumps(dict(environment), sort_keys=True, separators=(",", ":"))


def digest_of(environment: Environment) -> str:
    """SHA-256 of the environment's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(environment).encode("ascii")).hexdigest()
