"""Which models lie where: demand as it was seen, and a plan for the memory there is."""
