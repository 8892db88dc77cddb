"""The state machine behind one door: `Engine.handle(events, now) -> Step`. No I/O, no clock, no randomness."""
