"""From a network and examples to a result: add here what plans, judges or keeps measurements, never an attack."""
