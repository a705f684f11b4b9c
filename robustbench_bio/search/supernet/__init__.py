"""The network that holds every choice of a search space, and its training; may be added: what every such engine needs.

How the alphas move is an engine's own and stands in `engines`.
"""
