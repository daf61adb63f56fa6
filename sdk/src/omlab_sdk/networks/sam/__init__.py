"""Segment Anything in two dimensions: image encoder, prompt encoder, mask decoder.

Every module keeps upstream's state-dict names. The modules import torch; this package does not.
"""
