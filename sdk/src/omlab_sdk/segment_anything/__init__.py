"""Segment Anything of pictures around its graphs, in NumPy: frames, prompts, sessions, and the model on top.

The networks are in :mod:`omlab_sdk.networks.sam`. Nothing here imports torch.
"""
