"""The mathematics of LoRAs: parametrisations and the groups that act on them, batches, geometry. Imports torch and
nothing of ours.
"""
