"""Simulated clusters: the store's real client in virtual time, with faults, from one seed each."""
