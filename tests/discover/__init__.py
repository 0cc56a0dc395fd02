"""Local services: how they are found, asked and chosen from."""
