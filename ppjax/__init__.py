"""Persona in, small role-playing model out."""

__version__ = '0.1.0'
