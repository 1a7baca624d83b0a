"""How an optimizer of any library is driven: one protocol, one loop that records, and the targets that are judged."""
