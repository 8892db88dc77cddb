"""One tiny process per attempt that starts the job, carries out what it is asked, and writes down how it ended.

It outlives the daemon and its upgrades, so it must import nothing but the standard library and gpusched.rundir,
run no user code, and hold no more than a few MiB. Files: spawner (the warm process that forks supervisors),
supervise (what a supervisor does), jobside (what happens between fork and exec), jobdir (the user's files, which
are believed only after checking), tree (finding and signalling processes).
"""
