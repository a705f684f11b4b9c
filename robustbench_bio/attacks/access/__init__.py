"""What an attacker may ask of a network: logits, gradients of a named kind, scores of its trace."""
