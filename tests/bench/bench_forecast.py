"""What a forecast costs: the picture (on the daemon's loop), the second engine, and one roll. Run it by hand:

    python tests/bench/bench_forecast.py [POLICY…]

Eight devices that are all taken, and 20, 1,000 and 10,000 waiting jobs of mixed lengths. A roll is bounded as the
daemon bounds it if `--bound SECONDS` is given; else it goes on until the last job has started.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_cycle import NOW, engine
from builders import PEOPLE, spec

from gpusched.engine.engine import Engine
from gpusched.engine.picture import revive, take
from gpusched.model.events import AttemptStarted, JobSubmitted
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Rules
from gpusched.simulator.guesses import Guess
from gpusched.simulator.roll import Roll

KINDS = [
    spec(gpus=gpus, qos=qos, name=name, expected=seconds)
    for gpus in (1, 1, 1, 2, 4)
    for qos in ("low", "normal")
    for name, seconds in (("train", 7200.0), ("eval", 300.0), ("sweep", 1800.0))
]


def filled(policy: PolicyName, count: int) -> Engine:
    made = engine()
    made = _with_rules(made, Rules(policy=PolicyRules(name=policy)))
    people = list(PEOPLE.values())[:2]
    for number in range(count + 8):
        kind = KINDS[number % len(KINDS)] if number >= 8 else spec(gpus=1, expected=600.0 * (number + 1))
        step = made.handle([JobSubmitted(kind, people[number % 2])], NOW)
        for action in step.actions:
            if type(action).__name__ == "Launch":
                made.handle([AttemptStarted(action.attempt, 1)], NOW)
    return made


def _with_rules(made: Engine, rules: Rules) -> Engine:
    other = Engine(rules, "boot")
    for slot in made.view.slots.values():
        other.view.put_device(slot.device)
    return other


def timed_ms(act: object, times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        act()  # type: ignore[operator]
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def main() -> None:
    words = sys.argv[1:]
    bound = float(words.pop(words.index("--bound") + 1)) if "--bound" in words else float("inf")
    names = [PolicyName(word) for word in words if word != "--bound"] or [PolicyName.BACKFILL, PolicyName.LAS]
    titles = ("waiting", "picture ms", "revive ms", "roll ms", "steps", "starts")
    print(f"{'policy':10}", *(f"{title:>10}" for title in titles))
    for name in names:
        for count in (20, 1000, 10_000):
            made = filled(name, count)
            waiting = [job.id for job in made.view.waiting()]
            picture = take(made, NOW)
            taking = timed_ms(lambda made=made: take(made, NOW), 20)
            reviving = timed_ms(lambda picture=picture: revive(picture), 3)
            roll = Roll(picture, Guess.LIKELY)
            start = time.perf_counter()
            roll.run((), waiting, lambda _roll, start=start: time.perf_counter() - start > bound)
            rolling = (time.perf_counter() - start) * 1000
            print(
                f"{name:10} {len(waiting):10} {taking:10.3f} {reviving:10.1f} {rolling:10.1f} {roll.steps:10} "
                f"{len(roll.starts):10}"
            )


if __name__ == "__main__":
    main()
