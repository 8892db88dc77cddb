"""The nouns of gpusched: frozen dataclasses, closed enums and the small grammars people type.

Nothing here reads a clock, a file or a socket, so that a simulated month and a real day run the same code.
"""
