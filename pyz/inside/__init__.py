"""The start-up of gnar.pyz; its modules have the same names in the file as here."""
