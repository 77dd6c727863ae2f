"""The Triton backend: `launch` has one function per operation's schema.

Importing this package does not import Triton; importing `launch` does.
"""
