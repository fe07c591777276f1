"""Data that ships with the domain package."""
