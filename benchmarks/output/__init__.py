"""The results as tables, as JSON and as a picture."""
