"""May a measured robustness be believed? Checks for gradient masking and the verdict."""
