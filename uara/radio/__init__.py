"""From geometry to bits per second: channel banks, interference and the link model."""
