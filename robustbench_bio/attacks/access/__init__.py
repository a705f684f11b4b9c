"""What an attacker may ask of a network: logits, and input gradients of a named kind.

`white_box` is what attacks see. Behind it stand the forward pass as a graph of plain operations (`trace`), gradients
for thresholds (`surrogate`) and the mean answer of random networks (`mean_prediction`). Another kind of gradient is
added to `records.gradient` and answered in `white_box`.
"""
