"""What happens when a run is killed, a write fails or an input is bad; the tests and ``benchmarks/reliability.py`` use it."""
