"""The LLM of the fake whose engine is built ahead of time."""

from .._llm import BuiltLLM as LLM

__all__ = ["LLM"]
