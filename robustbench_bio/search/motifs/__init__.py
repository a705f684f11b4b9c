"""Searching circuits of motifs for spiking networks."""
