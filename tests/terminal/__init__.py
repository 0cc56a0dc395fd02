"""The live view: text, keys, pictures, and real terminals."""
