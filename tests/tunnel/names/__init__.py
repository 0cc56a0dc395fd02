"""Names end to end: programs of gnar, real services behind names, and real users."""
