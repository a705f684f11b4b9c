"""May a measured robustness be believed? Add here checks for gradient masking, and what joins them to a verdict."""
