"""What happens when a run is killed, a write fails or an input is bad; used by ``reliability.py`` and by the tests."""
