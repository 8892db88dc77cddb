"""The shell around the engine: inbox, commit, actions, watching the world. Only app.py picks concrete adapters."""
