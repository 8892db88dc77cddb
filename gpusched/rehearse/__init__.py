"""`gpusched rehearse`: does a training script really resume exactly? It is run once undisturbed and once preempted.

    plan.py       what is to be done           traces.py     reading what gpusched.checkpoint traced
    process.py    starting and ending commands points.py     at which safe points to preempt
    attempt.py    one process as the daemon    files.py      comparing result files
                  would start it               source.py     what follows run.step() in the script
    outcome.py    verdict and exit codes       diagnose.py   the first difference and its likely cause
    preempted.py  a run with stops             rehearsal.py  the whole story

Needs no daemon and no GPU. Must not import the daemon's side: it plays the scheduler with the files of rundir.py.
"""
