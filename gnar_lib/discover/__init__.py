"""Finds services of this machine that could be published, and lets a person choose one; publishes none."""
