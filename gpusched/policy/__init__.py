"""Decisions, as pure functions of the view and the time passed in. They change nothing: the engine does."""
