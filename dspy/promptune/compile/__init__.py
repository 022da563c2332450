"""`compile`: options, callbacks, and the steps of a run put together, with upstream's attributes."""
