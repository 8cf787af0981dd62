"""Instruction tasks: conversations about items and histories, mixed by weight, for pretrained policies."""
