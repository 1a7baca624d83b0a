"""What a check found, as tables and charts: in the terminal, on a page, and as data."""
