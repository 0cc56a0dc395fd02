"""The start-up of gnar.pyz, which stands in the file under the same names as here."""
