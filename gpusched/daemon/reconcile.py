"""At the start of the daemon (and after a failed commit): observe every attempt, and tell the engine as events.

| the control directory shows            | so                                                              |
|----------------------------------------|-----------------------------------------------------------------|
| exit.json                              | its true end, also of an earlier boot of the machine             |
| another boot of the machine            | LOST; no pid of that boot is touched                             |
| the lock is held                       | alive: followed again                                            |
| nothing                                | the start is revoked, so that it can never happen: back to the queue |
| claimed, but neither lock nor exit.json | the remains are killed, LOST                                     |
"""

from __future__ import annotations

import asyncio
import logging

from gpusched.daemon.watch import Watcher, started_facts
from gpusched.engine.engine import Engine
from gpusched.model.events import AttemptExited, Event, ServiceStarted
from gpusched.model.job import Attempt
from gpusched.model.state import Outcome, OutcomeKind

log = logging.getLogger(__name__)


async def observe_attempts(engine: Engine, watcher: Watcher) -> list[Event]:
    """What became of every attempt that the engine believes alive. Ends with ServiceStarted."""
    events: list[Event] = []
    for attempt in sorted(engine.view.live.values(), key=lambda a: a.key):
        events += await _one(attempt, engine.state.boot_id, watcher)
    _forget_old(engine, watcher)
    return [*events, ServiceStarted()]


async def _one(attempt: Attempt, boot_id: str, watcher: Watcher) -> list[Event]:
    key = attempt.key
    try:
        seen = await asyncio.to_thread(watcher.launcher.observe, key)
    except OSError as error:
        log.error("attempt %s cannot be looked at, so it is taken to be alive: %s", key, error)
        watcher.follow(attempt)
        return []
    if attempt.boot_id != boot_id:
        lost = Outcome(OutcomeKind.LOST, text="the machine was restarted while it ran", saved=seen.saved)
        return [AttemptExited(key, seen.outcome or lost, attempt.uuids)]
    if not seen.claimed and not seen.revoked and not watcher.launcher.revoke(key):
        seen = watcher.launcher.observe(key)  # a supervisor has claimed it in this very moment
    if not seen.claimed:
        return [AttemptExited(key, Outcome(OutcomeKind.NEVER_STARTED))]
    facts = started_facts(key, watcher.look(key))
    if seen.outcome is None and seen.alive:
        log.info("attempt %s is alive: followed again", key)
        watcher.follow(attempt)
        return facts
    return [*facts, await watcher.report_end(attempt, seen)]


def _forget_old(engine: Engine, watcher: Watcher) -> None:
    """Remove control directories of attempts whose end was recorded before the daemon stopped."""
    known = {a.key for a in (*engine.view.live.values(), *engine.view.leaving.values())}
    for key in watcher.launcher.attempts():
        if key in known:
            continue
        try:
            if watcher.launcher.observe(key).alive:
                log.warning("attempt %s is alive, but the database does not know it: it is left alone", key)
            else:
                watcher.launcher.forget(key)
        except OSError as error:
            log.warning("what is left of attempt %s cannot be removed: %s", key, error)
