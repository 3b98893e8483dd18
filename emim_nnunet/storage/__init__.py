"""Files, figures, locks and versions: what every room that writes needs."""
