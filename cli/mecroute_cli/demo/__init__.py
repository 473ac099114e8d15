"""`mecroute demo`: the whole story on one machine, really running, and checking itself."""
