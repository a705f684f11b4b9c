"""Networks by name: add here what reads the data folders, loads a network, or tells what one is and measures.

Nothing here attacks a network. A network itself is data: a card in the folder `models`, with weights and genotype.
"""
