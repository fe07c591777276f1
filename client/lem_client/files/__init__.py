"""Campaign files: reading, layering, overriding and validating them."""
