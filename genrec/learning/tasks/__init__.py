"""Instruction tasks: conversations about items and histories, mixed by weight, for policies that read text."""
