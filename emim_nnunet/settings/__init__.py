"""Plans and their ``emim`` block: where every number of a stage lives."""
