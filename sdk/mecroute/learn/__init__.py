"""Learning from what models answered: quality predictors, and how well they route."""
