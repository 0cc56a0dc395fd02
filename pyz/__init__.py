"""What makes gnar.pyz, the one file that gnar is shipped as; nothing of it is in the running program."""
