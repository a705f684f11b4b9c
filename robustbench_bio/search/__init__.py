"""From a search space and images to a genotype: task, fitness, candidates and their scores, and a run by name.

May be added: what more than one engine needs. What one engine alone needs stands in `engines`, who scores candidates in
`executors`, what only supernets or only motifs need in the rooms of that name.
"""
