"""The admin port of any process: who may ask, and what each answers; knows neither server nor client."""
