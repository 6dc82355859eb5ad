"""The only floor that touches paths: rasters, vectors, the site."""
