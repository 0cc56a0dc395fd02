"""The tests, in folders like those of gnar_lib; `tests/run.sh` runs them."""
