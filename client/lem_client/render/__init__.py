"""How things look to people: numbers, tables, explanations, the live view. Nothing here talks to the server."""
