"""The command line, on click: one file per command group. It asks the daemon through gpusched.client and imports no
daemon code; commands that run something here (`daemon run`, `demo`) import it inside the command.
"""
