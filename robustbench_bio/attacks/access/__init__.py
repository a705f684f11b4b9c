"""What an attacker may ask of a network: logits, and input gradients of a named kind.

`white_box` is what attacks see. Behind it stand the forward pass as a graph of plain operations (`trace`), gradients
where that has none (`surrogate`, by the rewriting in `stand_ins`) and the mean answer of random networks
(`mean_prediction`). `comparison` tells which gradients of a network an attack has to follow. Another kind of gradient
is added to `records.gradient` and answered in `white_box`.
"""
