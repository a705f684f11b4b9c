"""Searching motifs for spiking networks: genomes, their evolution, their scores; may be added: another measure."""
