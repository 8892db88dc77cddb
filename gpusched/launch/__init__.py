"""Launchers: how an attempt gets started, watched and stopped on this machine. Adapters of ports.Launcher.

`local` forks supervisors from one warm process (user mode, containers, tests); `environ` says what a job sees.
"""
