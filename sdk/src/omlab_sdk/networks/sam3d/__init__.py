"""Segment Anything in three dimensions, as SAM-Med3D defines it: what differs from :mod:`omlab_sdk.networks.sam`.

Every module keeps upstream's state-dict names. The modules import torch; this package does not.
"""
